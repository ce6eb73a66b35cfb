"""A copy of a model whose weights were moved off the lattice of the file that they came from."""

import shutil
from pathlib import Path

import torch
import transformers
from originals import save_tensors
from torch import Tensor

RATE = 1e-4
WARM_UP = 20  # steps


def finetuned(original: Path, windows: Tensor, steps: int) -> Path:
    """The folder of a copy, made where it isn't there yet; a window takes about 2 s.

    Args:
        original: Its folder.
        windows: (windows, length) token ids to train on in order, at least `steps`.
        steps: Of AdamW, a window each, in bfloat16 with weights in float32.
    """
    folder = original.parents[1] / f"{original.parent.name}-finetuned-{steps}" / "original"
    if folder.exists():
        return folder
    partial = folder.with_suffix(".partial")
    shutil.copytree(original, partial, dirs_exist_ok=True)
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_pretrained(original, dtype=torch.float32)
    with torch.enable_grad():
        train(model.train(), windows[:steps])
    save_tensors(model, partial)
    partial.rename(folder)
    return folder


def train(model: torch.nn.Module, windows: Tensor) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), RATE, weight_decay=0.0)
    for step, ids in enumerate(windows):
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1.0, (step + 1) / WARM_UP)
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(input_ids=ids[None], labels=ids[None], use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
