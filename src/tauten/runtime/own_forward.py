"""Packed layers of classes that are derived from torch's and have a forward of their own.

Such a layer keeps its class, its attributes and its forward. Only its `weight` becomes another
kind of tensor: functions that multiply by it or look up its rows compute packed, its dtype, device
and shape cost nothing, and whatever else reads it gets the dequantized values.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from tauten.runtime import kernels
from tauten.runtime.modules import PackedModule, autocast, node_of
from tauten.runtime.read_weight import SAME, read_weight

# What a packed layer adds to the one it replaces; a layer that has one of these can't be packed.
ADDED = frozenset({"packed", "activation", "settings", "step", "dtype_like", "stands_for"})


class PackedTensor(Tensor):
    """The weight of a packed layer, dequantized only for functions that can't compute packed.

    Attributes:
        layer: That it belongs to.
    """

    layer: PackedModule

    @staticmethod
    def __new__(cls, layer: PackedModule) -> "PackedTensor":
        like = layer.dtype_like
        made: PackedTensor = Tensor._make_wrapper_subclass(
            cls, layer.packed.shape, dtype=like.dtype, device=like.device
        )
        made.layer = layer
        return made

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"PackedTensor({self.layer.extra_repr()})"

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func in SAME or (func is Tensor.to and _changes_nothing(*args, **kwargs)):
            return args[0]
        weight = args[1] if len(args) > 1 else kwargs.get("weight")
        if func in _PACKED and isinstance(weight, cls):
            func = _PACKED[func]
        elif func in _VIEWS or not (func.__name__ == "__get__" or func in _FACTS):
            args, kwargs = tree_map(_read, (args, kwargs))
            return func(*args, **kwargs)
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **kwargs)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        args, kwargs = tree_map(_dequantized, (args, dict(kwargs or {})))
        return func(*args, **kwargs)


def _dequantized(value: Any) -> Any:
    return value.layer.dequantized() if isinstance(value, PackedTensor) else value


def _read(value: Any) -> Any:
    """What raises where it is written to, and else computes like the dequantized weight."""
    return read_weight(_dequantized(value)) if isinstance(value, PackedTensor) else value


def _changes_nothing(weight: Tensor, *args: Any, **kwargs: Any) -> bool:
    """Whether `weight.to(...)` is the weight as it is."""
    device, dtype, *_ = torch._C._nn._parse_to(*args, **kwargs)
    return device in (None, weight.device) and dtype in (None, weight.dtype)


def _look_up(input: Tensor, weight: PackedTensor, *_: Any, **__: Any) -> Tensor:
    return kernels.rows(input, weight.layer.packed, weight.dtype)


def _multiply(input: Tensor, weight: PackedTensor, bias: Tensor | None = None) -> Tensor:
    layer = weight.layer
    return autocast(kernels.linear(input, layer.packed, bias, layer.activation, layer.step))


def _convolve(
    input: Tensor,
    weight: PackedTensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    layer, count = weight.layer, weight.dim() - 2
    stride, dilation = _each(stride, count), _each(dilation, count)
    spans = [d * (k - 1) for d, k in zip(dilation, weight.shape[2:], strict=True)]
    if isinstance(padding, str):
        both = [(s // 2, s - s // 2) if padding == "same" else (0, 0) for s in spans]
    else:
        both = [(p, p) for p in _each(padding, count)]
    settings = {
        "stride": stride,
        "padding": padding if isinstance(padding, str) else _each(padding, count),
        "dilation": dilation,
        "groups": groups,
        "padding_mode": "zeros",
        "pad_edges": [edge for pair in reversed(both) for edge in pair],
    }
    product = (input, layer.packed, bias, layer.activation, settings, layer.step)
    return autocast(kernels.conv(*product))


def _each(value: Any, count: int) -> list[int]:
    return [value] * count if isinstance(value, int) else list(value)


_VIEWS = tuple(getattr(Tensor, name).__get__ for name in ("T", "H", "mT", "mH", "real"))
_FACTS = (Tensor.size, Tensor.dim, Tensor.numel, Tensor.is_floating_point, Tensor.element_size)
_PACKED: dict[Any, Callable[..., Tensor]] = {
    nn.functional.embedding: _look_up,
    nn.functional.linear: _multiply,
    nn.functional.conv1d: _convolve,
    nn.functional.conv2d: _convolve,
    nn.functional.conv3d: _convolve,
}


class KeepsForward(PackedModule):
    """What such layers share.

    Attributes:
        stands_for: Name of the packed class that a layer of torch's own class would become.
    """

    stands_for: str

    @property
    def weight(self) -> Tensor:
        """The weight; see `PackedTensor`. `torch.compile` knows no tensors of other kinds."""
        return self.dequantized() if torch.compiler.is_dynamo_compiling() else PackedTensor(self)

    def __reduce__(self) -> Any:
        return _empty, (type(self).__bases__[1],), self.__dict__


def with_own_forward(kind: type[nn.Module], packed: PackedModule) -> KeepsForward:
    """A packed layer that computes what a class's own forward says.

    Args:
        kind: Derived from a class of torch, its layers without attributes named in `ADDED`.
        packed: What a layer of torch's own class would become.
    """
    kept = _empty(kind)
    kept.__dict__.update(packed.__dict__)
    kept.stands_for = type(packed).__name__
    return kept


def _empty(kind: Any) -> KeepsForward:
    made = _kept_class(kind)
    return made.__new__(made)


@functools.cache
def _kept_class(kind: Any) -> type[KeepsForward]:
    @functools.wraps(kind.forward)
    def forward(self: KeepsForward, *args: Any, **kwargs: Any) -> Any:
        node = node_of(self, *args, **kwargs)
        return kind.forward(self, *args, **kwargs) if node is None else node

    own = {"__module__": kind.__module__, "forward": forward}  # before that of `PackedModule`
    return type(f"Packed{kind.__name__}", (KeepsForward, kind), own)
