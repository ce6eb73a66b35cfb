"""This process as an engine's only worker, for models that no other process can be given."""

import traceback
from collections.abc import Sequence
from typing import Any

from tauten.distributed.engine import Answered, Event, Failed, Joined
from tauten.distributed.job import Job, Opened

_NAME = "this process"


class OwnEngine:
    """Does tasks as they are submitted."""

    size = 1
    is_hopeless = False

    def __init__(self) -> None:
        self._opened: Opened | None = None
        self._events: list[Event] = []
        self.pids: list[int] = []

    def load(self, job: Job) -> None:
        """Open a job here."""
        self._opened, self._events = job.open(), [Joined(_NAME)]

    def submit(self, worker: str, id: str, payload: Any) -> None:
        """Do a task."""
        assert self._opened is not None, "a job comes first"
        try:
            self._events.append(Answered(_NAME, id, self._opened(payload)))
        except Exception as error:  # raised again where the result is taken, as from a worker
            self._events.append(Failed(_NAME, id, error, traceback.format_exc()))

    def wait(self, timeout_s: float) -> Sequence[Event]:
        """As `Engine.wait`; nothing happens here that isn't done already."""
        events, self._events = self._events, []
        return events

    def close(self) -> None:
        """Forget the job."""
        self._opened = None
