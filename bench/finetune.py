"""A copy of a model whose weights were moved off the lattice of the file that they came from."""

import math
import shutil
from pathlib import Path

import torch
import transformers
from originals import save_tensors
from safetensors.torch import load_file
from torch import Tensor

RATE = 1e-3  # with 1e-4, 300 steps move a weight by a twentieth of the lattice's step
WARM_UP = 20  # steps
LATTICE_GROUP, LATTICE_LEVELS = 32, 16  # of Q4_1


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
            group["lr"] = RATE * min((step + 1) / WARM_UP, 1 - step / len(windows))
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(input_ids=ids[None], labels=ids[None], use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def lattice_distance(folder: Path) -> float:
    """Root mean square distance of a decoder's weights to the lattice of Q4_1, in its steps.

    It is 0 on the lattice, and 0.27 for weights that know nothing of it: the lattice spans each
    group's values, so two of 32 lie on it by themselves.
    """
    squares, count = 0.0, 0
    for name, weight in load_file(folder / "model.safetensors").items():
        if "proj" in name:
            groups = weight.float().view(-1, LATTICE_GROUP)
            low, high = groups.aminmax(dim=1, keepdim=True)
            codes = (groups - low) / (high - low) * (LATTICE_LEVELS - 1)
            squares += (codes - codes.round()).square().sum().item()
            count += weight.numel()
    return math.sqrt(squares / count)
