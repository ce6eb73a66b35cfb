"""Tasks by id: who works on which, which are finished, and what comes next."""

import itertools
import statistics
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from tauten.core.errors import WorkerError
from tauten.distributed.record import Record

_ATTEMPTS = 3  # that may end with their worker, before a task is given up
_LATE = 3.0  # times the usual time of a task: another worker tries it too


@dataclass
class Task:
    """One piece of work.

    Attributes:
        id: The same in every run over the same input.
        payload: What a worker needs for it.
        attempts: That ended with their worker.
        holders: Workers that have it, and when each got it, in seconds.
    """

    id: str
    payload: Any
    attempts: int = 0
    holders: dict[str, float] = field(default_factory=dict)


class TaskTable:
    """Each task is done at least once, its first result counts, and results come in order.

    Args:
        tasks: Ids and payloads; drawn only as workers get free.
        record: Keeps results on disk; tasks that it holds aren't done again.
        window: Results that may wait for an earlier one; more aren't drawn.
    """

    def __init__(self, tasks: Iterable[tuple[str, Any]], record: Record | None, window: int):
        self._source = iter(tasks)
        self._record, self._window = record, window
        self._order: deque[str] = deque()  # drawn, and not given back yet
        self._pending: deque[Task] = deque()
        self._held: dict[str, Task] = {}
        self._results: dict[str, Any] = {}
        self._durations_s: deque[float] = deque(maxlen=64)
        self._is_drained = False

    @property
    def is_finished(self) -> bool:
        """Whether all results were given back."""
        return self._is_drained and not self._order

    @property
    def is_waiting(self) -> bool:
        """Whether no result is ready to be given back."""
        return not self._order or self._order[0] not in self._results

    def take(self, worker: str, count: int, now_s: float) -> list[Task]:
        """Up to so many tasks for a worker; late ones of others where no new ones are left."""
        self._draw(count)
        taken = [self._pending.popleft() for _ in range(min(count, len(self._pending)))]
        if not taken:
            late = self._late(worker, now_s)
            taken = [] if late is None else [late]
        for task in taken:
            task.holders[worker] = now_s
            self._held[task.id] = task
        return taken

    def finish(self, id: str, worker: str, result: Any, now_s: float) -> bool:
        """Take a result; whether it is the first of its task."""
        task = self._held.pop(id, None)
        if task is None:
            return False
        if worker in task.holders:
            self._durations_s.append(now_s - task.holders[worker])
        if self._record is not None:
            self._record.add(id, task.payload, result)
        self._results[id] = result
        return True

    def began(self, id: str, worker: str, now_s: float) -> None:
        """A worker has got to a task that it was given earlier."""
        if id in self._held and worker in self._held[id].holders:
            self._held[id].holders[worker] = now_s

    def release(self, worker: str, began: str | None, why: str) -> None:
        """Take a lost worker's tasks back; they come next.

        Args:
            worker: That is lost.
            began: The task that it was at.
            why: For the error.
        Raises:
            WorkerError: That task has ended its workers again and again.
        """
        for task in reversed(list(self._held.values())):
            if task.holders.pop(worker, None) is None:
                continue
            task.attempts += task.id == began
            if task.attempts >= _ATTEMPTS:
                raise WorkerError(f"task {task.id} ended its worker {_ATTEMPTS} times; {why}")
            if not task.holders:
                del self._held[task.id]
                self._pending.appendleft(task)

    def give_back(self) -> Iterator[Any]:
        """Results that are next in order."""
        while not self.is_waiting:
            yield self._results.pop(self._order.popleft())

    def _draw(self, count: int) -> None:
        """Draw tasks until so many are pending; finished ones are read from the record."""
        while len(self._pending) < count and not self._is_drained:
            if len(self._order) >= self._window:
                return
            drawn = next(self._source, None)
            if drawn is None:
                self._is_drained = True
                return
            id, payload = drawn
            self._order.append(id)
            if self._record is not None and self._record.holds(id, payload):
                self._results[id] = self._record.read(id)
            else:
                self._pending.append(Task(id, payload))

    def _late(self, worker: str, now_s: float) -> Task | None:
        """The task that is held longest, if that is unusual; once a worker."""
        if not self._durations_s:
            return None
        usual_s = statistics.median(self._durations_s)
        held = (t for t in self._held.values() if worker not in t.holders and len(t.holders) == 1)
        oldest = min(held, key=lambda t: min(t.holders.values()), default=None)
        if oldest is None or now_s - min(oldest.holders.values()) < _LATE * usual_s:
            return None
        return oldest


def numbered(payloads: Iterable[Any]) -> Iterator[tuple[str, Any]]:
    """Tasks that are known by their number."""
    return zip(map(str, itertools.count()), payloads)  # noqa: B905 (the count has no end)
