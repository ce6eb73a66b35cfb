"""Which tensors go from layer to layer, watched in one run of a model."""

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tauten.core.trees import tensors_of

CACHES = ("past_key_values", "cache_params", "mems", "state")  # kept for a model's next call


class Dataflow(TorchDispatchMode):
    """Inputs and outputs of some modules, and all that takes each tensor.

    Args:
        modules: By name; none is inside another.
    Attributes:
        calls: How often each was called.
        given: First input of each, kept so that no other tensor takes over its id.
        made: Output of each.
        rectified: By id of a ReLU's output the input and output; in place they are the same.
    """

    def __init__(self, modules: Mapping[str, nn.Module]):
        super().__init__()  # type: ignore[no-untyped-call]
        self._modules = modules
        self.calls: Counter[str] = Counter()
        self.given: dict[str, Tensor] = {}
        self.made: dict[str, Tensor] = {}
        self.rectified: dict[int, tuple[Tensor, Tensor]] = {}
        self._takers: dict[int, set[str]] = {}
        self._inside, self._operations = "", 0

    def maker(self, tensor: Tensor) -> str:
        """The module whose output a tensor is; empty if it is none's."""
        return next((name for name, made in self.made.items() if made is tensor), "")

    def takers(self, tensor: Tensor) -> set[str]:
        """Modules that take a tensor that was made; operations outside of them by a number.

        A ReLU in place isn't one: see `rectified`.
        """
        return self._takers.get(id(tensor), set())

    @contextlib.contextmanager
    def watching(self) -> Iterator["Dataflow"]:
        """Watch what runs in this context."""
        hooks: list[Any] = []
        for name, module in self._modules.items():
            hooks.append(module.register_forward_pre_hook(self._enter(name)))
            hooks.append(module.register_forward_hook(self._leave(name)))
        try:
            with self:
                yield self
        finally:
            for hook in hooks:
                hook.remove()

    def _enter(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
            self._inside = name
            self.calls[name] += 1
            if args:
                self.given[name] = args[0]

        return hook

    def _leave(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
            self._inside = ""
            self.made[name] = output
            self._takers[id(output)] = set()  # of tensors that had this id before

        return hook

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        self._operations += 1
        taker = self._inside or str(self._operations)
        if func is torch.ops.aten.relu_.default:
            self.rectified[id(args[0])] = args[0], args[0]
            return func(*args)
        for leaf in tree_leaves((args, kwargs or {})):
            if isinstance(leaf, Tensor):
                self._takers.setdefault(id(leaf), set()).add(taker)
        output = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.relu.default:
            self.rectified[id(output)] = args[0], output
            self._takers[id(output)] = set()
        return output


def without_caches(output: Any) -> Any:
    """What a model returns, without what it keeps for its next call."""
    if not isinstance(output, Mapping):
        return output
    return {key: value for key, value in output.items() if key not in CACHES}


def equal_outputs(before: Any, after: Any) -> bool:
    """Whether all floating outputs of two calls agree to half of their digits; but for caches."""
    before, after = (without_caches(output) for output in (before, after))
    for old, new in zip(tensors_of(before), tensors_of(after), strict=True):
        if old.is_floating_point():
            limit = torch.finfo(old.dtype).eps ** 0.5 * old.norm()
            if not bool((new - old).norm() <= limit):
                return False
    return True
