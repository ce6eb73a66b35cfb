"""Move scale between what makes a layer's inputs and the columns of the weight that reads them.

Dividing a channel where it is made, by a norm or a linear layer, and multiplying the columns that
read it changes nothing but what is lost when weights or inputs are rounded. Where a block allows
that is found by trying it, not by the names of a model's layers.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from tauten.core.inputs import LayerInputs
from tauten.core.technique import ScalingTechnique
from tauten.models.packing import matrix_of

Run = Callable[[nn.Module], Tensor]
TOLERANCE = 1e-4  # of a channel's norm; trial scales are powers of two, which round nothing
NORM_OFFSETS = (0.0, 1.0)  # y = x w, or x (1 + w) as in Gemma


@dataclass(frozen=True)
class Fold:
    """A producer of channels, and all layers that read them.

    Attributes:
        producer: Name in the block of a norm or a linear layer.
        consumers: Names of the linear layers that read its output.
        channels: (in,) int64, the producer's channel that each column of the consumers reads:
            with grouped queries several columns read one.
        offset: What the norm adds to its weight.
    """

    producer: str
    consumers: tuple[str, ...]
    channels: Tensor
    offset: float = 0.0

    def tensors(self, block: nn.Module) -> dict[str, Tensor]:
        """What it changes, by name."""
        made: Any = block.get_submodule(self.producer)
        found = {f"{self.producer}.weight": made.weight}
        if getattr(made, "bias", None) is not None:
            found[f"{self.producer}.bias"] = made.bias
        return found | {f"{n}.weight": block.get_parameter(f"{n}.weight") for n in self.consumers}

    def apply(self, block: nn.Module, scale: Tensor) -> None:
        """Divide the producer's channels by a scale (channels,) and multiply columns: in place."""
        made: Any = block.get_submodule(self.producer)
        if made.weight.dim() == 1:
            made.weight.add_(self.offset).div_(scale).sub_(self.offset)
        else:
            matrix_of(made, made.weight).div_(scale[:, None])
        if getattr(made, "bias", None) is not None:
            made.bias.div_(scale)
        for name in self.consumers:
            _matrix(block, name).mul_(scale[self.channels])


class Folding:
    """Finds the folds of blocks; those of a block are tried first on others built like it."""

    def __init__(self) -> None:
        self._known: dict[str, list[Fold]] = {}

    def folds(self, block: nn.Module, run: Run) -> list[Fold]:
        """Folds that leave the output of a block as it is.

        Args:
            block: In float32, with tensors of its own; it is changed and put back.
            run: Calls such a block on real input.
        Cost: Two calls of the block if one like it is known, else one for each pair that fits.
        """
        known = self._known.get(repr(block), [])
        if known and _unchanged(block, run, known, run(block)):
            return known
        found = self._known[repr(block)] = find_folds(block, run)
        return found


def find_folds(block: nn.Module, run: Run) -> list[Fold]:
    """Find a block's folds from scratch; arguments as for `Folding.folds`."""
    trace, found = _Trace(block, run), []
    for consumers in trace.groups():
        for fold in _candidates(block, run, trace, consumers):
            if _unchanged(block, run, [fold], trace.output):
                found.append(fold)
                break
    return found


def rescale(
    block: nn.Module,
    folds: Sequence[Fold],
    techniques: Mapping[str, ScalingTechnique],
    inputs: Mapping[str, LayerInputs],
) -> tuple[list[Fold], dict[str, LayerInputs]]:
    """Ask techniques for the scale of each fold, and apply it.

    Args:
        block: In float32; changed in place.
        folds: Of the block.
        techniques: By the names of the linear layers that will be packed. A fold needs one and the
            same for all consumers, and some for a linear producer.
        inputs: Of the layers; those not seen are left alone.
    Returns:
        The folds that were applied, and the inputs of all layers in the block as it is then.
    """
    applied, seen = [], dict(inputs)
    for fold in folds:
        technique = techniques.get(fold.consumers[0])
        same = all(techniques.get(name) == technique for name in fold.consumers)
        packed = fold.producer in techniques or not _is_linear(block.get_submodule(fold.producer))
        found = seen.get(fold.consumers[0])
        if technique is None or found is None or not (same and packed):
            continue
        weights = [_matrix(block, name) for name in fold.consumers]
        scale = technique.scale(weights, found, fold.channels)
        by_channel = torch.ones(_width(block, fold.producer), dtype=torch.float32)
        by_channel[fold.channels] = scale
        fold.apply(block, by_channel)
        seen |= dict.fromkeys(fold.consumers, found.divided(scale))
        applied.append(fold)
    return applied, seen


class _Trace:
    """One call of a block: what its linear layers were given, and by which norm.

    Attributes:
        inputs: Of the linear layers, in the order of their calls.
        output: Of the block.
    """

    def __init__(self, block: nn.Module, run: Run):
        self.inputs: dict[str, Tensor] = {}
        self._norms: dict[object, tuple[str, Tensor]] = {}  # kept, so that no address comes twice
        hooks = [
            module.register_forward_hook(self._hook(name), with_kwargs=True)
            for name, module in block.named_modules()
            if _is_linear(module) or _is_norm(module)
        ]
        try:
            self.output = run(block)
        finally:
            for hook in hooks:
                hook.remove()

    def groups(self) -> list[tuple[str, ...]]:
        """Layers that were given the same tensor."""
        groups: dict[object, list[str]] = {}
        for name, x in self.inputs.items():
            groups.setdefault(_place(x), []).append(name)
        return [tuple(names) for names in groups.values()]

    def norm_of(self, x: Tensor) -> str | None:
        """The norm whose output x is."""
        return self._norms.get(_place(x), (None, x))[0]

    def _hook(self, name: str) -> Any:
        def hook(module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
            if _is_linear(module):
                self.inputs[name] = args[0] if args else next(iter(kwargs.values()))
            elif isinstance(output, Tensor):
                self._norms[_place(output)] = name, output

        return hook


def _candidates(
    block: nn.Module, run: Run, trace: _Trace, consumers: tuple[str, ...]
) -> Iterator[Fold]:
    """Folds that fit by their sizes: the norm that made the input, or a layer called before."""
    x = trace.inputs[consumers[0]]
    size, norm = x.shape[-1], trace.norm_of(x)
    if norm is not None and _width(block, norm) == size:
        for offset in NORM_OFFSETS:
            yield Fold(norm, consumers, torch.arange(size), offset)
        return
    called = list(trace.inputs)
    for name in reversed(called[: called.index(consumers[0])]):
        width = _width(block, name)
        if width == size:
            yield Fold(name, consumers, torch.arange(size))
        elif size % width == 0:
            channels = _channels_read(block, run, name, consumers[0], x)
            if channels is not None:
                yield Fold(name, consumers, channels)


def _channels_read(
    block: nn.Module, run: Run, producer: str, consumer: str, x: Tensor
) -> Tensor | None:
    """The channel of a producer that each column of a consumer reads.

    Each channel is divided by a number of its own, and columns tell theirs by what became of them.
    None where the consumer then gets other tokens: an expert, by what the producer does.
    """
    width = _width(block, producer)
    marks = torch.linspace(1, 2, width, dtype=torch.float32)
    with _rescaled(block, [Fold(producer, (), torch.arange(0))], [marks]):
        found = _Trace(block, run).inputs.get(consumer)
    if found is None or found.shape != x.shape:
        return None
    x, marked = x.flatten(0, -2), found.flatten(0, -2)
    strongest = x.abs().argmax(0, keepdim=True)
    ratio = (x.gather(0, strongest) / marked.gather(0, strongest))[0].nan_to_num()
    return ((ratio - 1) * (width - 1)).round().long().clamp(0, width - 1)


def _unchanged(block: nn.Module, run: Run, folds: Sequence[Fold], expected: Tensor) -> bool:
    """Whether the output of a block stays the same whatever the scales of some folds."""
    generator = torch.Generator().manual_seed(0)
    widths = [_width(block, fold.producer) for fold in folds]
    scales = [2.0 ** torch.randint(-2, 3, (width,), generator=generator) for width in widths]
    with _rescaled(block, folds, scales):
        change = run(block) - expected
    lost, norm = (t.flatten(0, -2).norm(dim=0) for t in (change, expected))
    return bool((lost <= TOLERANCE * norm).all())


@contextlib.contextmanager
def _rescaled(block: nn.Module, folds: Sequence[Fold], scales: Sequence[Tensor]) -> Iterator[None]:
    """Apply folds for a while."""
    tensors = {name: t for fold in folds for name, t in fold.tensors(block).items()}
    saved = {name: tensor.clone() for name, tensor in tensors.items()}
    try:
        for fold, scale in zip(folds, scales, strict=True):
            fold.apply(block, scale)
        yield
    finally:
        for name, tensor in tensors.items():
            tensor.copy_(saved[name])


def _is_linear(module: nn.Module) -> bool:
    return type(module) in (nn.Linear, Conv1D)


def _is_norm(module: nn.Module) -> bool:
    weight = module._parameters.get("weight")
    return weight is not None and weight.dim() == 1


def _matrix(block: nn.Module, name: str) -> Tensor:
    """(out, in) of a linear layer, a view."""
    return matrix_of(block.get_submodule(name), block.get_parameter(f"{name}.weight"))


def _width(block: nn.Module, producer: str) -> int:
    """Channels that a norm or a linear layer makes."""
    return len(_matrix(block, producer))


def _place(x: Tensor) -> object:
    """The same for views of a tensor that have the same columns."""
    return x.data_ptr(), x.shape[-1], x.numel()
