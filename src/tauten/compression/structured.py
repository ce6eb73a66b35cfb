"""What structured pruning does once it is known how many channels of which groups go."""

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tauten.core.inputs import LayerInputs
from tauten.core.progress import track
from tauten.models.batchnorm import NORMS, frozen
from tauten.models.calibration import Calibration, CalibrationBatch
from tauten.models.channel_groups import LAYERS, ChannelGroup, Member, cut, masks, width
from tauten.models.packing import matrix_of
from tauten.models.structure import find_structure
from tauten.solvers.channel_importance import Reader, independent_losses, removal_order
from tauten.solvers.compensation import compensated, with_constant

Inputs = Mapping[str, LayerInputs]


def prune_groups(
    model: nn.Module,
    removals: Sequence[tuple[ChannelGroup, int]],
    batches: Sequence[CalibrationBatch],
    damping: float,
    norms: Mapping[str, str] | None = None,
) -> None:
    """Remove the channels that are missed least, and let what reads the rest make up for them.

    Blocks that form a chain are pruned one by one, each on what the pruned ones before it make.
    Without data channels count by their weights alone, and nothing makes up for them.

    Args:
        model: Changed in place; no tensor is written into.
        removals: Groups, and how many channels each loses.
        damping: Added to the second moments' diagonals, relative to their means.
        norms: By the name of a layer the batch norm that alone takes its outputs: its mean takes
            the constant that a layer without bias can't.
    """
    structure = find_structure(model)
    places = [{structure.block_of(member.module) for member in g.members} for g, _ in removals]
    chained = all(len(place) == 1 and "" not in place for place in places)
    blocks = structure.blocks if chained else ()
    calibration = Calibration(batches) if batches else None
    if calibration:
        readers = _readers(removals)
        calibration.start(model, blocks, lambda _: contextlib.nullcontext(), readers)
    parts = blocks or ("",)
    for part in track(parts, "removing channels", len(parts)):
        own = [r for r, place in zip(removals, places, strict=True) if not blocks or part in place]
        inputs = calibration.observe(part, _readers(own)) if calibration else {}
        _prune_part(model, own, inputs, damping, norms or {})
        if calibration:
            calibration.advance(part)


def kept_channels(size: int, fraction: float, multiple: int, parts: int = 1) -> int:
    """About (1 - fraction) * size channels, a multiple of `multiple` in each part, at least one."""
    step = multiple * parts
    return min(size, max(step, round((1 - fraction) * size / step) * step))


def _prune_part(
    model: nn.Module,
    removals: Sequence[tuple[ChannelGroup, int]],
    inputs: Inputs,
    damping: float,
    norms: Mapping[str, str],
) -> None:
    choices = []
    for group, count in removals:
        kept = torch.ones(group.size, dtype=torch.bool)
        kept[_choose(model, group, count, inputs, damping, norms)] = False
        choices.append((group, kept))
    for (name, side), features in masks(choices).items():
        if side == "in" and name in inputs:
            _compensate(model, name, features, inputs[name], damping, norms)
    cut(model, choices)


def _choose(
    model: nn.Module,
    group: ChannelGroup,
    count: int,
    inputs: Inputs,
    damping: float,
    norms: Mapping[str, str],
) -> Tensor:
    """(count,) channels to remove."""
    strength = _strength(model, group)
    readers = [_reader(model, m, strength, inputs, norms) for m in group.on("in")]
    if any(reader.moment.dim() == 2 for reader in readers):
        return removal_order(readers, count, group.parts, damping)
    order = independent_losses(readers).view(group.parts, -1).argsort(dim=1, stable=True)
    starts = torch.arange(group.parts)[:, None] * (group.size // group.parts)
    return (order[:, : count // group.parts] + starts).flatten()


def _reader(
    model: nn.Module, member: Member, strength: Tensor, inputs: Inputs, norms: Mapping[str, str]
) -> Reader:
    """A layer that reads a group; without data its inputs are as strong as `strength` says."""
    layer: Any = model.get_submodule(member.module)
    weight = _matrix(layer)
    positions = weight.shape[1] // width(layer, "in")  # of a convolution's kernel
    features = torch.arange(len(strength) * member.span).view(len(strength), -1) + member.start
    columns = (features[:, :, None] * positions + torch.arange(positions)).flatten(1)
    found = inputs.get(member.module)
    if found is None:
        diagonal = torch.ones(weight.shape[1])
        diagonal[columns] = strength[:, None]
        return Reader(weight, diagonal, columns)
    if _takes_constant(layer, member.module, norms):
        assert found.mean is not None
        weight = torch.cat([weight, weight.new_zeros(len(weight), 1)], 1)
        return Reader(weight, with_constant(found.moment, found.mean), columns)
    return Reader(weight, found.moment, columns)


def _strength(model: nn.Module, group: ChannelGroup) -> Tensor:
    """(channels,) second moment of each channel as weights alone tell it.

    Behind a batch norm it is w^2 + b^2 of its weight and bias, elsewhere |row|^2 + b^2 as if
    inputs were independent and of size 1; several makers add up.
    """
    total, normed = torch.zeros(group.size), torch.zeros(group.size)
    for member in group.members:
        module: Any = model.get_submodule(member.module)
        if member.side == "in" or (member.side == "both" and not isinstance(module, NORMS)):
            continue
        if module.weight is None:  # a norm without parameters
            continue
        power = module.weight.detach().float().square()
        if type(module) in LAYERS:
            power = matrix_of(module, power).flatten(1).sum(1)
        if module.bias is not None:
            power = power + module.bias.detach().float().square()
        own = power[member.start : member.start + group.size * member.span]
        found = own.view(group.size, -1).sum(1)
        if isinstance(module, NORMS):
            normed += found
        else:
            total += found
    return normed if normed.any() else total


def _compensate(
    model: nn.Module,
    name: str,
    features: Sequence[int],
    inputs: LayerInputs,
    damping: float,
    norms: Mapping[str, str],
) -> None:
    """Give a layer the weight that fits its outputs best without some of its inputs."""
    layer: Any = model.get_submodule(name)
    weight, moment = _matrix(layer), inputs.moment
    kept = torch.ones(width(layer, "in"), dtype=torch.bool)
    kept[list(features)] = False
    kept = kept.repeat_interleave(weight.shape[1] // len(kept))
    constant = _takes_constant(layer, name, norms)
    if constant:
        assert inputs.mean is not None
        moment = with_constant(moment, inputs.mean)
        weight = torch.cat([weight, weight.new_zeros(len(weight), 1)], 1)
        kept = torch.cat([kept, torch.ones(1, dtype=torch.bool)])
    new = compensated(weight, moment, kept, damping)
    change = new[:, -1]
    new = matrix_of(layer, new[:, :-1] if constant else new).reshape(layer.weight.shape)
    layer.weight = frozen(new.to(layer.weight.dtype))
    if constant and layer.bias is not None:
        layer.bias = frozen((layer.bias + change).to(layer.bias.dtype))
    elif constant:
        norm: Any = model.get_submodule(norms[name])
        norm.running_mean = norm.running_mean - change


def _takes_constant(layer: Any, name: str, norms: Mapping[str, str]) -> bool:
    return layer.bias is not None or name in norms


def _matrix(layer: Any) -> Tensor:
    """(out, in * positions) float32; a grouped convolution's with zeros where it doesn't read."""
    weight = matrix_of(layer, layer.weight.detach()).float()
    parts = weight.flatten(1).chunk(getattr(layer, "groups", 1))
    whole: Tensor = torch.block_diag(*parts)
    return whole


def _readers(removals: Sequence[tuple[ChannelGroup, int]]) -> list[str]:
    return list(dict.fromkeys(m.module for group, _ in removals for m in group.on("in")))
