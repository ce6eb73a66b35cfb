"""What starts workers and carries tasks to them: processes here, a hosts file, or Ray."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from tauten.distributed.job import Job


@dataclass(frozen=True)
class Joined:
    """A worker has opened the job."""

    worker: str


@dataclass(frozen=True)
class Answered:
    """A worker has done a task."""

    worker: str
    id: str
    result: Any


@dataclass(frozen=True)
class Failed:
    """What a worker does raised an error; an empty id: opening the job did."""

    worker: str
    id: str
    error: Exception
    where: str


@dataclass(frozen=True)
class Lost:
    """A worker has ended; it joins again if it can be started anew."""

    worker: str
    why: str


Event = Joined | Answered | Failed | Lost


class Engine(Protocol):
    """Workers and how to reach them."""

    def load(self, job: Job) -> None:
        """Have all workers, also those to come, open a job; each then joins."""
        ...

    def submit(self, worker: str, id: str, payload: Any) -> None:
        """Give a worker a task, behind those that it has; a worker that has gone is `Lost`."""
        ...

    def wait(self, timeout_s: float) -> Sequence[Event]:
        """What has happened; waits until something has, or so long."""
        ...

    @property
    def size(self) -> int:
        """Workers that it has or is starting."""
        ...

    @property
    def pids(self) -> list[int]:
        """Process ids of workers on this machine."""
        ...

    @property
    def is_hopeless(self) -> bool:
        """Whether no worker is left, nor being started."""
        ...

    def close(self) -> None:
        """End the workers."""
        ...
