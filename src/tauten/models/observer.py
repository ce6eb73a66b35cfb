"""Second moments of what layers see, gathered by hooks while a model runs."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from tauten.core.inputs import LayerInputs

MOST_SAMPLED = 512  # rows a layer


class NothingLeft(Exception):
    """Ends a call of a model behind the last thing that is looked for in it."""


class Observer:
    """Sums x x^T over the rows x that each layer is called with.

    Layers that see the same rows of the very same tensor (q, k, v; gate, up) share one sum.
    Embeddings and convolutions with groups are passed over: their weight isn't one product.
    From the second batch on, `NothingLeft` ends a call once all layers were seen; one with experts
    that no token of it reaches runs to its end.

    Args:
        layers: By name, as they will be called.
        shifted: Also sum (x of the original - x) x^T; each `batch` then follows its `original`.
        counted: Also count `LayerInputs.magnitudes`.
    """

    def __init__(
        self, layers: Mapping[str, nn.Module], shifted: bool = False, counted: bool = False
    ):
        self.layers = {name: layer for name, layer in layers.items() if is_observed(layer)}
        self._shifted, self._counted = shifted, counted
        self._owner: dict[str, str] = {}
        self._moment: dict[str, Tensor] = {}
        self._shift: dict[str, Tensor] = {}
        self._peak: dict[str, Tensor] = {}
        self._sample: dict[str, tuple[int, Tensor]] = {}  # every how many rows, and the rows
        self._sum: dict[str, Tensor] = {}
        self._magnitudes: dict[str, Tensor] = {}
        self._tokens: dict[str, int] = {}
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

    def inputs(self) -> dict[str, LayerInputs]:
        """Means by layer; layers that no token reached are missing."""
        means = {}
        for owner, moment in self._moment.items():
            count = self._tokens[owner]
            if not count:
                continue
            shift = self._shift[owner] / count if owner in self._shift else None
            means[owner] = LayerInputs(
                moment / count,
                count,
                shift,
                self._peak.get(owner),
                self._sample[owner][1],
                mean=self._sum[owner] / count,
                magnitudes=self._magnitudes.get(owner),
            )
        return {name: means[owner] for name, owner in self._owner.items() if owner in means}

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
                if last and self._recording == "moment":
                    raise NothingLeft

        return hook

    def _take(self, name: str, layer: nn.Module, x: Tensor) -> None:
        # The tensor is kept in `_seen`, so that no other takes over its id within the batch.
        first, _ = self._seen.setdefault((id(x), _geometry(layer)), (name, x))
        owner = self._owner.setdefault(name, first)
        if owner != name and owner == first:
            return
        rows = _rows(layer, x, self._mask)
        if self._recording == "original":
            self._original[name] = rows
            return
        size = rows.shape[1]
        moment = self._moment.setdefault(name, torch.zeros(size, size))
        moment.addmm_(rows.t(), rows)
        if len(rows):
            peak = rows.abs().amax(0)
            self._peak[name] = torch.maximum(self._peak.get(name, peak), peak)
        self._sample[name] = self._thinned(name, rows)
        self._tokens[name] = self._tokens.get(name, 0) + len(rows)
        self._sum[name] = self._sum.get(name, torch.zeros(size)) + rows.sum(0)
        if self._counted:
            counts = _magnitudes(layer, x, rows)
            self._magnitudes[name] = self._magnitudes.get(name, torch.zeros_like(counts)) + counts
        if self._shifted and name in self._original:
            shift = self._shift.setdefault(name, torch.zeros(size, size))
            shift.addmm_((self._original.pop(name) - rows).t(), rows)

    def _thinned(self, name: str, rows: Tensor) -> tuple[int, Tensor]:
        """Rows sampled of a layer with those of a batch: evenly spread over all its tokens.

        Every third stays each time there are too many: windows often have a length that is a
        power of two, and thirds don't keep to the same positions in them.
        """
        every, sample = self._sample.get(name, (1, rows[:0]))
        sample = torch.cat([sample, rows[-self._tokens.get(name, 0) % every :: every]])
        while len(sample) > MOST_SAMPLED:
            every, sample = every * 3, sample[::3]
        return every, sample.clone()


def is_observed(layer: nn.Module) -> bool:
    """Whether the inputs of a layer of this kind have a second moment."""
    if isinstance(layer, nn.Conv1d | nn.Conv2d):
        return layer.groups == 1
    return isinstance(layer, nn.Linear | Conv1D)


def _geometry(layer: nn.Module) -> Any:
    """What decides, beside the tensor, which rows a layer makes of it."""
    if not isinstance(layer, nn.Conv1d | nn.Conv2d):
        return None
    edges = tuple(layer._reversed_padding_repeated_twice)
    return layer.kernel_size, layer.stride, layer.dilation, layer.padding_mode, edges


def _rows(layer: nn.Module, x: Tensor, mask: Tensor | None) -> Tensor:
    """The rows that a layer multiplies: (tokens, in) float32."""
    x = x.detach()
    if isinstance(layer, nn.Conv1d | nn.Conv2d):
        return _patches(layer, x.float())
    if mask is not None and x.shape[:2] == mask.shape:
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
