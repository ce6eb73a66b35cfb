"""A copy of a Llama that computes the same with weights that lie on no lattice.

The weights of a model that comes from a Q4_1 file are the levels of that file's grids, which
flatters whoever finds them again. So columns are multiplied by random factors, and what makes
their inputs is divided by them: norms before queries, keys, values, gate and up projections; rows
of values before the output projection; rows of up before the down projection.
"""

import math
import shutil
from pathlib import Path
from typing import Any

import torch
import transformers
from originals import save_tensors
from safetensors.torch import load_file
from torch import Tensor

FACTORS = 0.8, 1.25
LATTICE_GROUP, LATTICE_LEVELS = 32, 16  # of Q4_1


def rescaled(original: Path) -> Path:
    """The folder of a copy, made where it isn't there yet."""
    folder = original.parents[1] / f"{original.parent.name}-rescaled" / "original"
    if folder.exists():
        return folder
    partial = folder.with_suffix(".partial")
    shutil.copytree(original, partial, dirs_exist_ok=True)
    model = transformers.AutoModelForCausalLM.from_pretrained(original, dtype=torch.float32)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for layer in model.model.layers:
            rescale(layer, generator)
    save_tensors(model, partial)
    partial.rename(folder)
    return folder


def rescale(layer: Any, generator: torch.Generator) -> None:
    attention, ffn = layer.self_attn, layer.mlp

    def factors(count: int) -> Tensor:
        low, high = map(math.log, FACTORS)
        return torch.empty(count).uniform_(low, high, generator=generator).exp()

    for norm, readers in (
        (layer.input_layernorm, (attention.q_proj, attention.k_proj, attention.v_proj)),
        (layer.post_attention_layernorm, (ffn.gate_proj, ffn.up_proj)),
    ):
        factor = factors(len(norm.weight))
        norm.weight.div_(factor)
        for reader in readers:
            reader.weight.mul_(factor)
    factor = factors(len(ffn.up_proj.weight))
    ffn.up_proj.weight.div_(factor[:, None])
    ffn.down_proj.weight.mul_(factor)
    factor = factors(len(attention.v_proj.weight))
    attention.v_proj.weight.div_(factor[:, None])
    heads = factor.view(-1, 1, attention.head_dim)  # each is read by a group of query heads
    heads = heads.expand(-1, attention.num_key_value_groups, -1)
    attention.o_proj.weight.mul_(heads.flatten())


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
