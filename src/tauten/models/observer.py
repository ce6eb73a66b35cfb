"""Second moments of what layers see, gathered by hooks while a model runs."""

import contextlib
import math
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from tauten.core.inputs import LayerInputs
from tauten.models.input_sums import MOST_SAMPLED, InputSums, Node, ShardSums


class NothingLeft(Exception):
    """Ends a call of a model behind the last thing that is looked for in it."""


class Observer:
    """Sums x x^T over the rows x that each layer is called with.

    Layers that see the same rows of the very same tensor (q, k, v; gate, up) share one sum.
    Embeddings and convolutions with groups are passed over: their weight isn't one product.
    From the second batch on, `NothingLeft` ends a call once all layers were seen, if `stops`; one
    with experts that no token of it reaches runs to its end.

    Args:
        layers: By name, as they will be called.
        shifted: Also sum (x of the original - x) x^T; each `batch` then follows its `original`.
        unpaired: Layers to which the original may send other tokens; they have no such sum.
        counted: Also count `LayerInputs.magnitudes`.
        shards: That the batches are dealt out to; each has its part of the sample.
        stops: End calls that have nothing left to be seen; else they run to their end.
    """

    def __init__(
        self,
        layers: Mapping[str, nn.Module],
        shifted: bool = False,
        counted: bool = False,
        shards: int = 1,
        unpaired: Collection[str] = (),
        stops: bool = True,
    ):
        self.layers = {name: layer for name, layer in layers.items() if is_observed(layer)}
        self._shifted, self._counted, self._unpaired = shifted, counted, unpaired
        self._most_sampled, self._stops = MOST_SAMPLED // shards, stops
        self._done = ShardSums()
        self._owner = self._done.owner
        self._shard, self._sums = 0, dict[str, InputSums]()
        self._original: dict[str, Tensor] = {}
        self._hooks: list[Any] = []
        self._seen: dict[tuple[int, Any], tuple[str, Tensor]] = {}
        self._mask: Tensor | None = None
        self._called: set[str] = set()
        self._recording, self._batches = "", 0

    def __enter__(self) -> "Observer":
        self._hooks = [
            layer.register_forward_pre_hook(self._hook(name), with_kwargs=True)
            for name, layer in self.layers.items()
        ]
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def batch(self, mask: Tensor | None) -> contextlib.AbstractContextManager[None]:
        """Calls in this context count; `mask` (rows, length) is False at padding."""
        return self._record("moment", mask)

    def original(self, mask: Tensor | None) -> contextlib.AbstractContextManager[None]:
        """Calls in this context are the original's, to be compared with those of `batch`."""
        return self._record("original", mask)

    def shard(self, number: int) -> None:
        """Batches from here on are of this shard; numbers don't fall."""
        if number != self._shard:
            self._end_shard()
            self._shard = number

    def sums(self) -> ShardSums:
        """All that was summed."""
        self._end_shard()
        return self._done

    def inputs(self) -> dict[str, LayerInputs]:
        """Means by layer; layers that no token reached are missing."""
        return self.sums().inputs()

    def _end_shard(self) -> None:
        if self._sums:
            self._done.push(Node(self._shard, 1, self._sums))
            self._sums = {}

    @contextlib.contextmanager
    def _record(self, what: str, mask: Tensor | None) -> Iterator[None]:
        self._recording, self._mask, self._seen, self._called = what, mask, {}, set()
        yield
        self._recording, self._seen = "", {}
        self._batches += 1

    def _hook(self, name: str) -> Any:
        def hook(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if self._recording:
                x = args[0] if args else next(iter(kwargs.values()))
                self._take(name, layer, x)
                self._called.add(name)
                last = self._batches and len(self._called) == len(self.layers)
                if last and self._stops and self._recording == "moment":
                    raise NothingLeft

        return hook

    def _take(self, name: str, layer: nn.Module, x: Tensor) -> None:
        # The tensor is kept in `_seen`, so that no other takes over its id within the batch.
        first, _ = self._seen.setdefault((id(x), _geometry(layer)), (name, x))
        owner = self._owner.setdefault(name, first)
        if owner != name and owner == first:
            return
        if self._recording == "original":
            if name not in self._unpaired:
                self._original[name] = _rows(layer, x, self._mask)
            return
        rows = _rows(layer, x, self._mask)
        if rows.shape[1] != _columns(layer):  # its own forward makes something else of x first
            return
        sums = self._sums.setdefault(name, InputSums.empty(rows.shape[1]))
        sums.add(rows, self._most_sampled)
        if self._counted:
            sums.add_magnitudes(_magnitudes(layer, x, rows))
        if self._shifted and name in self._original:
            sums.add_shift(self._original.pop(name) - rows, rows)


def is_observed(layer: nn.Module) -> bool:
    """Whether the inputs of a layer of this kind have a second moment that serves its weight."""
    weight = layer.weight
    if isinstance(weight, Tensor) and not weight.is_floating_point():
        return False
    if isinstance(layer, nn.Conv1d | nn.Conv2d):
        return layer.groups == 1
    return isinstance(layer, nn.Linear | Conv1D)


def _geometry(layer: nn.Module) -> Any:
    """What decides, beside the tensor, which rows a layer makes of it."""
    if not isinstance(layer, nn.Conv1d | nn.Conv2d):
        return None
    edges = tuple(layer._reversed_padding_repeated_twice)
    return layer.kernel_size, layer.stride, layer.dilation, layer.padding_mode, edges


def _columns(layer: nn.Module) -> int:
    """Columns of a layer's matrix; GPT-2's Conv1D holds it the other way."""
    weight = layer.weight
    assert isinstance(weight, Tensor)
    rows, *columns = weight.shape
    return int(rows if isinstance(layer, Conv1D) else math.prod(columns))


def _rows(layer: nn.Module, x: Tensor, mask: Tensor | None) -> Tensor:
    """The rows that a layer multiplies: (tokens, in) float32."""
    x = x.detach()
    if isinstance(layer, nn.Conv1d | nn.Conv2d):
        return _patches(layer, x.float())
    # Not what is pooled, (rows, features), of as many features as tokens.
    if mask is not None and x.dim() > 2 and x.shape[:2] == mask.shape:
        return x[mask].float()
    return x.flatten(0, -2).float() if x.dim() > 1 else x[None].float()


def _magnitudes(layer: nn.Module, x: Tensor, rows: Tensor) -> Tensor:
    """`LayerInputs.magnitudes` of one call; a convolution sees its input, without padding."""
    values = x.detach() if isinstance(layer, nn.Conv1d | nn.Conv2d) else rows
    bits = values.bfloat16().contiguous().view(torch.int16).flatten() & 0x7FFF
    return torch.bincount(bits, minlength=2**15)


def _patches(layer: nn.Conv1d | nn.Conv2d, x: Tensor) -> Tensor:
    """(batch, channels, *size) -> (positions, channels * kernel), in the order of the weight."""
    size = len(layer.kernel_size)
    x = x if x.dim() == size + 2 else x[None]
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    x = nn.functional.pad(x, layer._reversed_padding_repeated_twice, mode=mode)
    kernel, stride, dilation = layer.kernel_size, layer.stride, layer.dilation
    if size == 1:
        x, kernel = x[:, :, None], (1, *kernel)
        stride, dilation = (1, *stride), (1, *dilation)
    return nn.functional.unfold(x, kernel, dilation, 0, stride).transpose(1, 2).flatten(0, 1)
