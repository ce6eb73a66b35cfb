"""The weight of a packed layer, as others read it: a copy that can't be mistaken for the weight."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from tauten.core.errors import InputError

WRITTEN = (
    "the weight of a packed layer is a copy, dequantized when it is read: writing it would change "
    "nothing; change the model before it is packed, or put a dense layer in this one's place"
)
SAME = (Tensor.data.__get__, Tensor.detach)  # type: ignore[attr-defined]  # the tensor itself
_SETTINGS = {"requires_grad_", "retain_grad", "rename_", "share_memory_"}  # they change no value
_STORED_IN_PLACE = {f"__{name}__" for name in ("iadd", "isub", "imul", "imatmul", "itruediv")} | {
    *(f"__{name}__" for name in ("ifloordiv", "imod", "ipow", "iand", "ior", "ixor", "setitem")),
    *("__ilshift__", "__irshift__"),
}


class ReadWeight(Tensor):
    """Behaves as a tensor, and what is computed of it is one; writing to it, or to a view, raises.

    `nn.Parameter(weight)` is a parameter like any other.
    """

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        first = args[0] if args else kwargs.get("tensor")  # torch.nn.init passes it by name
        written = tree_leaves((first if _writes(func) else None, kwargs.get("out")))
        if any(isinstance(tensor, cls) for tensor in written):
            raise InputError(WRITTEN)
        with torch._C.DisableTorchFunctionSubclass():
            result = func(*args, **kwargs)
        if type(result) is Tensor and isinstance(first, cls) and _shares(func, result):
            return result.as_subclass(cls)
        return result

    @property
    def _is_param(self) -> bool:
        return False

    @_is_param.setter
    def _is_param(self, value: bool) -> None:  # nn.Parameter sets it on what it is made of
        self.__class__ = nn.Parameter  # type: ignore[assignment]

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        return self.clone()

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.clone().__reduce_ex__(protocol)


def read_weight(weight: Tensor) -> Tensor:
    """A tensor of its own as a `ReadWeight`; compilers get it as it is."""
    return weight if torch.compiler.is_compiling() else weight.as_subclass(ReadWeight)


def _writes(func: Callable[..., Any]) -> bool:
    name = getattr(func, "__name__", "")
    if func == Tensor.data.__set__ or name in _STORED_IN_PLACE:  # type: ignore[attr-defined]
        return True
    return name.endswith("_") and not name.endswith("__") and name not in _SETTINGS


def _shares(func: Callable[..., Any], result: Tensor) -> bool:
    """Whether a result is the same memory."""
    return func in SAME or result._is_view()
