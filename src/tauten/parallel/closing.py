"""What modules on workers have in common: they end them."""

import weakref
from types import TracebackType
from typing import Any, TypeVar

from torch import nn

Own = TypeVar("Own", bound="ModuleOnWorkers")


class ModuleOnWorkers(nn.Module):
    """A module, and context manager, whose workers end when it is closed; `_close` ends them."""

    _close: "weakref.finalize[..., Any]"

    def close(self) -> None:
        """End the workers."""
        self._close()

    def __enter__(self: Own) -> Own:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        where: TracebackType | None,
    ) -> None:
        self.close()
