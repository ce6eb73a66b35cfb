"""Trace a model with torch.fx; where that fails, its parts for themselves; read its graphs."""

import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn

TORCH = str(Path(torch.__file__).parent)
UNTRACEABLE = (  # what code does with the stand-ins for tensors that tracing passes through it
    *(TypeError, ValueError, AttributeError, LookupError, RuntimeError, AssertionError),
    NameError,  # torch.fx, of a module that is made within a forward
)


def traced_parts(
    module: nn.Module, prefix: str, failures: list[str]
) -> Iterator[tuple[str, nn.Module, fx.Graph]]:
    """Graphs of the largest parts of a module that can be traced, with their names."""
    if type(module).__module__.startswith("torch.nn") and not list(module.children()):
        return
    tracer = _Tracer()
    if not isinstance(module, nn.ModuleList | nn.ModuleDict):  # these have no forward
        try:
            graph = tracer.trace(module)
        except UNTRACEABLE as error:
            failures.append(_where(error, prefix, tracer.inside))
        else:
            yield prefix, module, graph
            return
    for name, child in module.named_children():
        yield from traced_parts(child, f"{prefix}{name}.", failures)


def name_of(node: fx.Node) -> str:
    """Name of the function, method or module that a node calls."""
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")


def argument(node: fx.Node, place: int, name: str, default: Any) -> Any:
    """An argument of a node's call, by its place or its name."""
    return node.args[place] if len(node.args) > place else node.kwargs.get(name, default)


class _Tracer(fx.Tracer):
    """Knows the module in which tracing fails."""

    def __init__(self) -> None:
        super().__init__()
        self.inside = ""

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        outer, self.inside = self.inside, self.path_of_module(m)
        output = super().call_module(m, forward, args, kwargs)
        self.inside = outer
        return output


def _where(error: Exception, prefix: str, inside: str) -> str:
    """The module, file and line at which tracing failed."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if not f.filename.startswith((TORCH, __file__))]
    frame = own[-1] if own else frames[-1]
    name = f"{prefix}{inside}".rstrip(".") or "the model itself"
    return f"{name}, {frame.filename}:{frame.lineno} ({type(error).__name__}: {error})"
