"""Where a model's weights sit: blocks, units, and the layers that can be packed."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from transformers.pytorch_utils import Conv1D

from tauten.runtime.own_forward import ADDED

PACKABLE = (nn.Linear, nn.Embedding, nn.Conv1d, nn.Conv2d, nn.Conv3d, Conv1D)
# Also what is derived of them: `nn.MultiheadAttention` reads the weight of the first itself.
UNPACKABLE = (NonDynamicallyQuantizableLinear, Conv1D)
SIBLINGS = (
    r"(q|k|v)(_proj|_lin|_linear)?",
    r"query|key|value",
    r"(gate|up)(_proj)?|w1|w3",
)


@dataclass(frozen=True)
class Unit:
    """Weights that must share one decision: fused siblings, or one tied tensor under its names.

    Attributes:
        names: Module names, in model order.
        block: Name of the block it lies in; empty outside all blocks.
    """

    names: tuple[str, ...]
    block: str


@dataclass(frozen=True)
class Structure:
    """The parts of a model.

    Attributes:
        blocks: Names of the repeated elements, in order; empty where nothing repeats.
        units: All packable weights.
    """

    blocks: tuple[str, ...]
    units: tuple[Unit, ...]

    def block_of(self, name: str) -> str:
        """Block that a module lies in; empty outside all blocks."""
        return _block_of(name, self.blocks)


def find_structure(model: nn.Module) -> Structure:
    """Find blocks and units of any module; see `Structure`.

    The blocks are the elements of the `ModuleList` or `Sequential` with the most parameters whose
    elements are all of one class. Tied weights are found by identity, fused siblings (q, k, v;
    gate, up) by their names and a common input size under one parent.
    """
    blocks = _find_blocks(model)
    groups: dict[object, list[str]] = {}
    key_of_weight: dict[int, object] = {}
    for name, module in packable_modules(model):
        key = key_of_weight.setdefault(id(module.weight), _sibling_key(name, module))
        groups.setdefault(key, []).append(name)
    if _crosses_parts(model, blocks):
        blocks = ()  # blocks that share tensors can't be loaded and packed one by one
    units = tuple(Unit(tuple(names), _block_of(names[0], blocks)) for names in groups.values())
    return Structure(blocks, units)


def packable_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Layers whose weight can be packed, with their names, in model order.

    A weight that also stands in a place that can't be packed is left, or it would be stored twice.
    """
    kept = {
        id(parameter)
        for module in model.modules()
        for key, parameter in module._parameters.items()
        if key != "weight" or not _is_packable(module)
    }
    for name, module in model.named_modules():
        if _is_packable(module) and id(module.weight) not in kept:
            yield name, module


def _is_packable(module: Any) -> bool:
    """Whether a layer has a packed twin.

    One of a class derived from `PACKABLE` keeps its own forward; see `runtime.own_forward`.
    """
    if getattr(module, "max_norm", None) is not None:  # it rewrites its own weight in forward
        return False
    if type(module) in PACKABLE:
        return bool(module.weight.numel())
    weight = module._parameters.get("weight")
    if not isinstance(module, PACKABLE) or weight is None or not weight.numel():
        return False
    return not isinstance(module, UNPACKABLE) and not any(hasattr(module, name) for name in ADDED)


def other_matrices(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Parameters of two dimensions and more that stand in no packable layer, with their names."""
    layers = {name for name, _ in packable_modules(model)}
    for name, parameter in model.named_parameters():
        if parameter.dim() >= 2 and parameter.numel() and name.rpartition(".")[0] not in layers:
            yield name, parameter


def _sibling_key(name: str, module: nn.Module) -> object:
    parent, _, leaf = name.rpartition(".")
    if isinstance(module, nn.Linear):
        for index, pattern in enumerate(SIBLINGS):
            if re.fullmatch(pattern, leaf):
                return parent, index, module.in_features
    return name


def _find_blocks(model: nn.Module) -> tuple[str, ...]:
    best: tuple[str, ...] = ()
    best_size = 0
    for name, module in model.named_modules():
        if not isinstance(module, nn.ModuleList | nn.Sequential) or len(module) < 2:
            continue
        children = list(module)
        parametric = all(any(True for _ in child.parameters()) for child in children)
        if len({type(child) for child in children}) > 1 or type(children[0]) in PACKABLE:
            continue
        size = sum(p.numel() for p in module.parameters())
        if parametric and size > best_size:
            prefix = f"{name}." if name else ""
            best, best_size = tuple(f"{prefix}{key}" for key in module._modules), size
    return best


def _crosses_parts(model: nn.Module, blocks: tuple[str, ...]) -> bool:
    part_of: dict[int, str] = {}
    for name, tensor in model.named_parameters(remove_duplicate=False):
        part = _block_of(name, blocks)
        if part_of.setdefault(id(tensor), part) != part:
            return True
    return False


def _block_of(name: str, blocks: tuple[str, ...]) -> str:
    return next((b for b in blocks if name == b or name.startswith(b + ".")), "")
