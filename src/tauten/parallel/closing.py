"""What modules on workers have in common: they end them, and refuse what doesn't reach them."""

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, NoReturn, TypeVar

import torch
from torch import fx, nn
from torch._C._dynamo import eval_frame

from tauten.core.errors import InputError
from tauten.core.printing import logger
from tauten.core.trees import leaves_of, tensors_of
from tauten.parallel.row_cuts import Call

Own = TypeVar("Own", bound="ModuleOnWorkers")
_log = logger(__name__)


class ModuleOnWorkers(nn.Module):
    """A module, and context manager, whose workers end when it is closed.

    So they do when it is garbage, and when the process ends.
    """

    def __init__(self) -> None:
        super().__init__()
        self._closers: list[Callable[[], Any]] = []  # what was started last is ended first
        self._close = weakref.finalize(self, _run, self._closers)

    def close(self) -> None:
        """End the workers."""
        self._close()

    def _check_open(self) -> None:
        if not self._close.alive:
            raise InputError(
                "this model's workers were closed; call parallelize or distribute again"
            )

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            kind = type(self).__name__
            raise AttributeError(
                f"{kind} has no attribute {name!r}: it only calls the model, which keeps its own"
            ) from None

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        kind = type(self).__name__
        raise InputError(
            f"{kind} holds workers and can't be copied or saved: do that with the model, then "
            "parallelize or distribute the copy"
        )

    def __enter__(self: Own) -> Own:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        where: TracebackType | None,
    ) -> None:
        self.close()


class InferenceOnWorkers(ModuleOnWorkers):
    """One for inference: evaluation mode, no gradients, as the model was when it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.training = False
        self._said: set[str] = set()

    @contextmanager
    def _calling(self, args: Any, kwargs: Any) -> Iterator[None]:
        """Refuse, or say once, what stands around a call and doesn't reach workers."""
        self._check_open()
        self._checked((args, kwargs))
        with without_autocast():
            yield

    def _checked(self, call: Call) -> Call:
        if _is_traced(call):
            self._refuse_tracing()
        if any(_is_differentiated(tensor) for tensor in tensors_of(call)):
            raise InputError(
                "derivatives and torch.func's transforms don't reach workers: call the model "
                "itself, or parallelize(train=True)"
            )
        if torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda"):
            self._say_once(
                "autocast doesn't reach workers and is left out: convert the model first"
            )
        return call

    def _refuse_tracing(self) -> NoReturn:
        raise InputError(
            f"{type(self).__name__} hands calls to workers, which no graph can hold: trace, "
            "export, script or compile the model itself"
        )

    def __prepare_scriptable__(self) -> NoReturn:  # torch.jit.script asks for it first
        self._refuse_tracing()

    def _say_once(self, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            _log.warning(text)

    def _say_of_cache(self, config: Any, kwargs: Any) -> None:
        """Language models return a cache unless told not to; here they do if told to."""
        if getattr(config, "use_cache", False) and "use_cache" not in kwargs:
            self._say_once(
                "calls return no cache (past_key_values) unless use_cache=True is passed"
            )

    def _apply(self, fn: Callable[[Any], Any], recurse: bool = True) -> nn.Module:
        before = torch.empty(0, dtype=torch.float32)
        after = fn(before)
        if (after.dtype, after.device) != (before.dtype, before.device):
            raise InputError(
                f"workers hold the model as it was given: convert it to {after.dtype} on "
                f"{after.device} first, then parallelize or distribute it"
            )
        return self


def without_autocast() -> torch.autocast:
    """Around what is computed in this process as workers would; nor is its cache emptied."""
    return torch.autocast("cpu", enabled=False, cache_enabled=False)


def _is_traced(tree: Any) -> bool:
    """Whether a call is made to write a graph: by torch.compile, fx, jit or export."""
    if torch.compiler.is_dynamo_compiling() or eval_frame.get_eval_frame_callback():
        return True  # what it doesn't trace runs as it is, and what that calls is traced
    if torch._C._is_tracing() or any(isinstance(leaf, fx.Proxy) for leaf in leaves_of(tree)):
        return True
    modes = (torch._C._TorchDispatchModeKey.PROXY, torch._C._TorchDispatchModeKey.FAKE)
    return any(torch._C._get_dispatch_mode(mode) is not None for mode in modes)


def _is_differentiated(tensor: torch.Tensor) -> bool:
    """Whether a tensor carries derivatives forward, or belongs to a transform of torch.func."""
    is_wrapped = torch._C._functorch.is_functorch_wrapped_tensor(tensor)
    return is_wrapped or torch.autograd.forward_ad.unpack_dual(tensor).tangent is not None


def _run(closers: list[Callable[[], Any]]) -> None:
    while closers:
        closers.pop()()
