"""What modules on workers have in common: they end them."""

import weakref
from collections.abc import Callable
from types import TracebackType
from typing import Any, TypeVar

from torch import nn

from tauten.core.errors import InputError

Own = TypeVar("Own", bound="ModuleOnWorkers")


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

    def __enter__(self: Own) -> Own:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        where: TracebackType | None,
    ) -> None:
        self.close()


def _run(closers: list[Callable[[], Any]]) -> None:
    while closers:
        closers.pop()()
