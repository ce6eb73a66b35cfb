"""Layers in packed formats beside the same layers unpacked, timed on this machine."""

import copy
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise, product

import torch
from torch import Tensor, nn

from tauten.core.errors import NotApplicableError
from tauten.core.progress import track
from tauten.core.technique import WeightTechnique
from tauten.formats.packed import PackedWeight
from tauten.models.packing import matrix_of, packed_layer, packed_modules, unpacked_layer
from tauten.models.structure import packable_modules
from tauten.runtime.modules import PackedConv, PackedLinear, PackedModule

ROUNDS = 5
# A model's weights don't stay in the cache from one token to the next, so copies take turns.
COLD_BYTES = 2**26
MOST_COPIES = 32
SIDE = 32  # of the images that convolutions are timed on


@dataclass(frozen=True)
class FormatTime:
    """Time of one call of a layer, or of the layers of a unit, in a format.

    Attributes:
        layer: What it is, such as `Linear 192 x 576`.
        format: What it is packed by.
        unpacked_s: Of the layer as it is.
        packed_s: Of the packed layer in the same alternated run.
        tokens: Rows of its input.
    """

    layer: str
    format: str
    unpacked_s: float
    packed_s: float
    tokens: int = 1

    @property
    def ratio(self) -> float:
        """Time in this format over time unpacked; above 1 is slower."""
        return self.packed_s / self.unpacked_s


def layer_inputs(model: nn.Module, call: Callable[[], object]) -> dict[str, Tensor]:
    """What each layer that multiplies is given in one call, by the layer's name.

    Args:
        model: Its embeddings are left out: they look up a row, whatever the format.
        call: Calls the model.
    """
    found: dict[str, Tensor] = {}
    handles = []
    for name, module in packable_modules(model):
        if not isinstance(module, nn.Embedding):

            def note(_: nn.Module, inputs: tuple[Tensor], name: str = name) -> None:
                if len(inputs) == 1:  # a layer called by keyword, or with more, isn't timed
                    found[name] = inputs[0].detach()

            handles.append(module.register_forward_pre_hook(note))
    try:
        with torch.inference_mode():
            call()
    finally:
        for handle in handles:
            handle.remove()
    return found


def distinct_layers(model: nn.Module) -> dict[str, nn.Module]:
    """One unpacked layer of each kind and shape that multiplies, by what it is."""
    found: dict[str, nn.Module] = {}
    for _, module in [*packable_modules(model), *packed_modules(model)]:
        if isinstance(module, PackedLinear | PackedConv):
            module = unpacked_layer(module)
        if not isinstance(module, nn.Embedding | PackedModule):
            found.setdefault(layer_name(module), module)
    return found


def layer_name(layer: nn.Module) -> str:
    """A layer's kind and the shape of its weight, such as `Linear 192 x 576`."""
    assert isinstance(layer.weight, Tensor)
    return f"{type(layer).__name__} {' x '.join(map(str, layer.weight.shape))}"


def time_formats(
    layers: dict[str, nn.Module],
    techniques: Mapping[str, WeightTechnique],
    tokens: Sequence[int] = (1, 128),
    rounds: int = ROUNDS,
) -> Iterator[FormatTime]:
    """Time layers packed by each technique beside the same layers unpacked.

    Args:
        layers: As `distinct_layers` finds them.
        techniques: What packs them, by name; one that can't pack a layer is left out there.
        tokens: Rows of the inputs; convolutions get one image of `SIDE` a side instead.
        rounds: Turns each contender gets.
    """
    pairs = list(product(layers.items(), techniques.items()))
    for (name, layer), (label, technique) in track(pairs, "timing formats", len(pairs)):
        packed = encode(layer, technique)
        if packed is None:
            continue
        for x in example_inputs(layer, tokens):
            times = time_packed(layer, packed, technique.activation_dtype, x, rounds)
            yield FormatTime(name, label, *times, tokens=len(x))


def example_inputs(layer: nn.Module, tokens: Sequence[int]) -> Iterator[Tensor]:
    """Random inputs of an unpacked layer: so many rows each, or one image for a convolution."""
    weight = layer.weight
    assert isinstance(weight, Tensor)
    if isinstance(layer, nn.Conv1d | nn.Conv2d):
        yield torch.randn(1, layer.in_channels, *(SIDE,) * (weight.dim() - 2), dtype=torch.float32)
    else:
        columns = matrix_of(layer, weight).shape[1]
        yield from (torch.randn(count, columns, dtype=torch.float32) for count in tokens)


def encode(module: nn.Module, technique: WeightTechnique) -> PackedWeight | None:
    """A layer's packed weight, None where the layer would be left as it is."""
    assert isinstance(module.weight, Tensor)
    matrix = matrix_of(module, module.weight.detach())
    try:
        packed = technique.encode(matrix)
    except NotApplicableError:
        return None
    assert isinstance(packed, PackedWeight)
    return packed if packed.size_bytes < matrix.nbytes else None


def time_packed(
    module: nn.Module, packed: PackedWeight, activation: str, x: Tensor, rounds: int = ROUNDS
) -> tuple[float, float]:
    """Seconds a call of a layer, unpacked and packed.

    The mean over copies of the least of some alternated rounds: each copy's weight comes from
    memory, and a moment in which the machine did something else doesn't count.
    """
    layers = (module, packed_layer(module, packed, activation))
    weight = module.weight
    assert isinstance(weight, Tensor)
    count = max(1, min(MOST_COPIES, COLD_BYTES // max(1, weight.nbytes)))
    with torch.inference_mode():
        for layer in layers:
            layer(x)  # a first use may convert the weight
        rows = [[copy.deepcopy(layer) for _ in range(count)] for layer in layers]
        turns = [[_seconds(row, x) for row in rows] for _ in range(rounds + 1)][1:]
    unpacked, in_format = (_least(own) for own in zip(*turns, strict=True))
    return unpacked, in_format


def call_overhead(technique: WeightTechnique) -> float:
    """Seconds of calling a packed layer, whatever its size: a product without calls lacks it."""
    module = nn.Linear(32, 16, bias=False)
    packed = technique.encode(module.weight.detach())
    assert isinstance(packed, PackedWeight)
    return time_packed(
        module, packed, technique.activation_dtype, torch.ones(1, 32, dtype=torch.float32)
    )[1]


def _seconds(layers: list[nn.Module], x: Tensor) -> list[float]:
    times = [time.perf_counter()]
    for layer in layers:
        layer(x)
        times.append(time.perf_counter())
    return [end - start for start, end in pairwise(times)]


def _least(rounds: Sequence[list[float]]) -> float:
    """Mean over copies of each one's least time."""
    return statistics.fmean(min(times) for times in zip(*rounds, strict=True))
