"""Which tensors go from layer to layer, watched in one run of a model."""

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Dataflow(TorchDispatchMode):
    """Inputs and outputs of some modules, and all that takes each tensor.

    Args:
        modules: By name; none is inside another.
    Attributes:
        calls: How often each was called.
        given: First input of each, kept so that no other tensor takes over its id.
        made: Output of each.
    """

    def __init__(self, modules: Mapping[str, nn.Module]):
        super().__init__()
        self._modules = modules
        self.calls: Counter[str] = Counter()
        self.given: dict[str, Tensor] = {}
        self.made: dict[str, Tensor] = {}
        self._takers: dict[int, set[str]] = {}
        self._inside, self._operations = "", 0

    def maker(self, tensor: Tensor) -> str:
        """The module whose output a tensor is; empty if it is none's."""
        return next((name for name, made in self.made.items() if made is tensor), "")

    def takers(self, tensor: Tensor) -> set[str]:
        """Modules that take a tensor that was made; operations outside of them by a number."""
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

        return hook

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        self._operations += 1
        taker = self._inside or str(self._operations)
        for leaf in tree_leaves((args, kwargs or {})):
            if isinstance(leaf, Tensor):
                self._takers.setdefault(id(leaf), set()).add(taker)
        return func(*args, **(kwargs or {}))
