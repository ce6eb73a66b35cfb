"""What structured pruning does once it is known how many channels of which groups go."""

import contextlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tauten.core.errors import NotApplicableError
from tauten.core.inputs import LayerInputs
from tauten.core.progress import track
from tauten.models.batchnorm import NORMS, frozen
from tauten.models.calibration import Calibration, CalibrationBatch
from tauten.models.channel_groups import LAYERS, ChannelGroup, Member, cut, masks, width
from tauten.models.packing import matrix_of
from tauten.models.structure import find_structure
from tauten.solvers.channel_importance import Reader, Removal, removal_order
from tauten.solvers.compensation import compensated, with_constant


def prune_groups(
    model: nn.Module,
    removals: Sequence[tuple[ChannelGroup, int]],
    batches: Sequence[CalibrationBatch],
    damping: float,
    norms: Mapping[str, str] | None = None,
    note: Callable[[ChannelGroup], None] = lambda _: None,
) -> None:
    """Remove the channels that are missed least, and let what reads the rest make up for them.

    Blocks that form a chain are pruned one by one, each on what the pruned ones before it make.
    Without data channels count by their weights alone, and nothing makes up for them.

    Args:
        model: Changed in place; no tensor is written into.
        removals: Groups, and how many channels each loses.
        batches: Calls of the model; may be empty.
        damping: Added to the second moments' diagonals, relative to their means.
        norms: By the name of a layer the batch norm that alone takes its outputs: its mean takes
            the constant that a layer without bias can't.
        note: Told of each group that was cut, before the model runs again.
    Raises:
        NotApplicableError: A layer of a group shares its weight with another.
    """
    _check_untied(model, [member.module for group, _ in removals for member in group.members])
    structure = find_structure(model)
    places = [{structure.block_of(member.module) for member in g.members} for g, _ in removals]
    chained = all(len(place) == 1 and "" not in place for place in places)
    blocks = structure.blocks if chained else ()
    calibration = Calibration(batches) if batches else None
    if calibration:
        readers = readers_of([group for group, _ in removals])
        calibration.start(model, blocks, lambda _: contextlib.nullcontext(), readers)
    parts = blocks or ("",)
    for part in track(parts, "removing channels", len(parts)):
        own = [r for r, place in zip(removals, places, strict=True) if not blocks or part in place]
        readers = readers_of([group for group, _ in own])
        inputs = calibration.observe(part, readers) if calibration else {}
        pruning = Pruning(model, inputs, damping, norms or {})
        pruning.remove([(group, pruning.removal(group, count).order) for group, count in own])
        for group, _ in own:
            note(group)
        if calibration:
            calibration.advance(part)


def _check_untied(model: nn.Module, names: Sequence[str]) -> None:
    """Refuse to cut one of several layers that have a weight in common: each would need its own."""
    uses = Counter(id(p) for _, p in model.named_parameters(remove_duplicate=False))
    for name in names:
        if uses[id(model.get_submodule(name).weight)] > 1:
            raise NotApplicableError(
                f"{name} shares its weight with another layer, and can't be cut with it; prune "
                "before layers are shared"
            )


def observed(
    model: nn.Module, groups: Sequence[ChannelGroup], batches: Sequence[CalibrationBatch]
) -> dict[str, LayerInputs]:
    """What the layers that read groups see, in the model as it is."""
    calibration = Calibration(batches)
    calibration.start(model, (), lambda _: contextlib.nullcontext(), readers_of(groups))
    return calibration.observe("", readers_of(groups))


def kept_channels(size: int, fraction: float, multiple: int, parts: int = 1) -> int:
    """About (1 - fraction) * size channels, a multiple of `multiple` in each part, at least one."""
    step = multiple * parts
    return min(size, max(step, round((1 - fraction) * size / step) * step))


def readers_of(groups: Sequence[ChannelGroup]) -> list[str]:
    """Names of the layers that read them."""
    return list(dict.fromkeys(m.module for group in groups for m in group.on("in")))


@dataclass(frozen=True)
class Pruning:
    """Choice, compensation and surgery on one part of a model.

    Attributes:
        model: Changed in place by `remove`; no tensor is written into.
        inputs: What layers see, by name; those of grouped convolutions, or all, may be missing.
        damping: As for `prune_groups`.
        norms: As for `prune_groups`.
    """

    model: nn.Module
    inputs: Mapping[str, LayerInputs]
    damping: float
    norms: Mapping[str, str]

    def removal(self, group: ChannelGroup, count: int) -> Removal:
        """The channels of a group that are missed least."""
        strength = _strength(self.model, group)
        readers = [self._reader(member, strength) for member in group.on("in")]
        return removal_order(readers, count, group.parts, self.damping)

    def remove(self, channels: Sequence[tuple[ChannelGroup, Tensor]]) -> None:
        """Remove channels of groups, all at once."""
        choices = []
        for group, removed in channels:
            kept = torch.ones(group.size, dtype=torch.bool)
            kept[removed] = False
            choices.append((group, kept))
        for (name, side), features in masks(choices).items():
            if side == "in" and name in self.inputs:
                self._compensate(name, features)
        cut(self.model, choices)

    def _reader(self, member: Member, strength: Tensor) -> Reader:
        """A layer that reads a group; if unseen its inputs are as strong as `strength` says."""
        layer: Any = self.model.get_submodule(member.module)
        positions = _matrix(layer).shape[1] // width(layer, "in")  # of a convolution's kernel
        features = torch.arange(len(strength) * member.span).view(len(strength), -1) + member.start
        columns = (features[:, :, None] * positions + torch.arange(positions)).flatten(1)
        if member.module in self.inputs:
            return Reader(*self._fitted(member.module), columns)
        weight = _matrix(layer)
        diagonal = torch.ones(weight.shape[1], dtype=torch.float32)
        diagonal[columns] = strength[:, None]
        return Reader(weight, diagonal, columns)

    def _fitted(self, name: str) -> tuple[Tensor, Tensor]:
        """A layer's weight and second moment, with a column for the constant if it takes one."""
        weight, seen = _matrix(self.model.get_submodule(name)), self.inputs[name]
        if not self._takes_constant(name):
            return weight, seen.moment
        assert seen.mean is not None
        weight = torch.cat([weight, weight.new_zeros(len(weight), 1)], 1)
        return weight, with_constant(seen.moment, seen.mean)

    def _compensate(self, name: str, features: Sequence[int]) -> None:
        """Give a layer the weight that fits its outputs best without some of its inputs."""
        layer: Any = self.model.get_submodule(name)
        weight, moment = self._fitted(name)
        constant = self._takes_constant(name)
        kept = torch.ones(width(layer, "in"), dtype=torch.bool)
        kept[list(features)] = False
        kept = kept.repeat_interleave((weight.shape[1] - constant) // len(kept))
        if constant:
            kept = torch.cat([kept, torch.ones(1, dtype=torch.bool)])
        new = compensated(weight, moment, kept, self.damping)
        matrix = matrix_of(layer, new[:, : new.shape[1] - constant])
        layer.weight = frozen(matrix.reshape(layer.weight.shape).to(layer.weight.dtype))
        if constant and layer.bias is not None:
            layer.bias = frozen((layer.bias + new[:, -1]).to(layer.bias.dtype))
        elif constant:
            norm: Any = self.model.get_submodule(self.norms[name])
            norm.running_mean = norm.running_mean - new[:, -1]

    def _takes_constant(self, name: str) -> bool:
        layer: Any = self.model.get_submodule(name)
        return layer.bias is not None or name in self.norms


def _strength(model: nn.Module, group: ChannelGroup) -> Tensor:
    """(channels,) second moment of each channel as weights alone tell it.

    Behind a batch norm it is w^2 + b^2 of its weight and bias, elsewhere |row|^2 + b^2 as if
    inputs were independent and of size 1; several makers add up.
    """
    total, normed = (
        torch.zeros(group.size, dtype=torch.float32),
        torch.zeros(group.size, dtype=torch.float32),
    )
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


def _matrix(layer: Any) -> Tensor:
    """(out, in * positions) float32; a grouped convolution's with zeros where it doesn't read."""
    weight = matrix_of(layer, layer.weight.detach()).float()
    parts = weight.flatten(1).chunk(getattr(layer, "groups", 1))
    whole: Tensor = torch.block_diag(*parts)
    return whole
