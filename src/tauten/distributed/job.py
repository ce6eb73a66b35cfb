"""What workers are to do: a class of Tauten by name, and settings that travel without pickle."""

import importlib
from dataclasses import dataclass, field
from typing import Any, Protocol

from tauten.core.errors import InputError
from tauten.parallel.parcel import Parcel
from tauten.parallel.worker import Place, Runner


class Opened(Protocol):
    """A job in a worker."""

    def __call__(self, payload: Any) -> Any:
        """Do one task."""
        ...


@dataclass(frozen=True)
class Job:
    """A kind of work.

    Attributes:
        kind: `tauten.module:Class`; called with the settings it gives an `Opened`.
        settings: Trees as `wire.encode` takes them; on this machine also a model's `Parcel`.
    """

    kind: str
    settings: dict[str, Any] = field(default_factory=dict)

    def open(self) -> Opened:
        """Make it ready, in a worker.

        Raises:
            InputError: The name isn't that of a class of Tauten: nothing else is imported.
        """
        module_name, _, name = self.kind.partition(":")
        if not module_name.startswith("tauten.") or not name.isidentifier():
            raise InputError(f"job {self.kind!r}: expected tauten.module:Class")
        opened: Opened = getattr(importlib.import_module(module_name), name)(**self.settings)
        return opened


@dataclass(frozen=True)
class JobPart:
    """A job as the processes of `tauten.parallel` load it."""

    job: Job

    def load(self, parcel: Parcel, place: Place) -> Runner:
        """Open it; the parcel is among its settings where it needs one."""
        opened = self.job.open()

        def run(method: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            return opened(args[0])

        return run
