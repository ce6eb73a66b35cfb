"""Channels that must be cut together, and the surgery that cuts them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from tauten.models.packing import matrix_of

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
LAYERS = (nn.Linear, Conv1D, *CONVOLUTIONS)
Side = Literal["out", "in", "both"]


@dataclass(frozen=True)
class Member:
    """Where a group's channels lie in one module.

    Attributes:
        module: Its name.
        side: `out` for rows of a weight and its bias, `in` for columns, `both` for modules that
            do the same with each channel, such as a batch norm or a depthwise convolution.
        start: First feature of the module that belongs to the group.
        span: Features a channel: more than 1 behind a flatten, or where a channel is a head.
    """

    module: str
    side: Side
    start: int = 0
    span: int = 1


@dataclass(frozen=True)
class ChannelGroup:
    """Channels that are one and the same in all members: cut one everywhere or nowhere.

    Attributes:
        size: Channels.
        members: In the order of the model's operations.
        parts: Equal runs of neighbours that must lose equally many channels: groups of a grouped
            convolution, or queries that share a key.
    """

    size: int
    members: tuple[Member, ...]
    parts: int = 1

    def on(self, side: Side) -> list[Member]:
        """Members of one side."""
        return [member for member in self.members if member.side == side]


def masks(choices: Iterable[tuple[ChannelGroup, Tensor]]) -> dict[tuple[str, Side], list[Any]]:
    """Which features of each module are removed.

    Args:
        choices: Groups, each with (size,) bool, True where a channel is kept.
    Returns:
        By module and side the indices (int) of removed features.
    """
    removed: dict[tuple[str, Side], list[int]] = {}
    for group, kept in choices:
        channels = (~kept).nonzero().flatten()
        for member in group.members:
            features = member.start + channels[:, None] * member.span + torch.arange(member.span)
            removed.setdefault((member.module, member.side), []).extend(features.flatten().tolist())
    return removed


def cut(model: nn.Module, choices: Sequence[tuple[ChannelGroup, Tensor]]) -> None:
    """Remove channels: modules get new, smaller tensors, and attributes that say so.

    Args:
        model: Changed in place; no tensor is written into.
        choices: Groups, each with (size,) bool, True where a channel is kept.
    """
    for (name, side), features in masks(choices).items():
        module = model.get_submodule(name)
        kept = torch.ones(width(module, side), dtype=torch.bool)
        kept[features] = False
        if side == "in":
            _cut_columns(module, kept)
        else:
            _cut_rows(module, kept)


def width(module: Any, side: Side) -> int:
    """Features that a module has on a side."""
    if type(module) not in LAYERS:
        return len(next(t for t in _vectors(module).values()))
    matrix = matrix_of(module, module.weight)
    return len(matrix) if side != "in" else matrix.shape[1] * getattr(module, "groups", 1)


def _cut_rows(module: Any, kept: Tensor) -> None:
    """Cut outputs; of a module that works on each channel alone also its inputs."""
    count = int(kept.sum())
    if type(module) not in LAYERS:
        for name, tensor in _vectors(module).items():
            _replace(module, name, tensor[kept])
        for attribute in ("num_features", "num_parameters"):
            if hasattr(module, attribute):
                setattr(module, attribute, count)
        return
    _replace(module, "weight", matrix_of(module, matrix_of(module, module.weight)[kept]))
    if module.bias is not None:
        _replace(module, "bias", module.bias[kept])
    if is_depthwise(module):
        module.groups = module.in_channels = count
    for attribute in ("out_features", "out_channels", "nf"):
        if hasattr(module, attribute):
            setattr(module, attribute, count)


def _cut_columns(module: Any, kept: Tensor) -> None:
    matrix = matrix_of(module, module.weight)
    parts = getattr(module, "groups", 1)
    rows = matrix.chunk(parts)
    columns = kept.chunk(parts)  # a part of the rows reads its own part of the channels
    matrix = torch.cat([row[:, own] for row, own in zip(rows, columns, strict=True)])
    _replace(module, "weight", matrix_of(module, matrix))
    for attribute in ("in_features", "in_channels", "nx"):
        if hasattr(module, attribute):
            setattr(module, attribute, int(kept.sum()))


def is_depthwise(module: Any) -> bool:
    """Whether a convolution makes one channel of each of several channels."""
    same = isinstance(module, CONVOLUTIONS) and module.groups == module.in_channels
    return same and module.in_channels == module.out_channels and module.groups > 1


def _vectors(module: nn.Module) -> dict[str, Tensor]:
    """A norm's tensors with a number a channel."""
    tensors = dict(module.named_parameters()) | dict(module.named_buffers())
    return {name: tensor for name, tensor in tensors.items() if tensor.dim() == 1}


def _replace(module: nn.Module, name: str, tensor: Tensor) -> None:
    old = getattr(module, name)
    tensor = tensor.detach().contiguous()
    if isinstance(old, nn.Parameter):
        setattr(module, name, nn.Parameter(tensor, requires_grad=old.requires_grad))
    else:
        setattr(module, name, tensor)
