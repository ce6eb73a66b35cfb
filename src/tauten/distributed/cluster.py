"""Workers that do tasks: dealt out by measured speed, done again where one is lost, in order."""

import itertools
import time
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from typing import Any

from tauten.core.errors import InputError, WorkerError
from tauten.distributed.engine import Answered, Engine, Event, Failed, Joined, Lost
from tauten.distributed.job import Job
from tauten.distributed.partition import Pace, shard_size
from tauten.distributed.record import Record
from tauten.distributed.task_table import TaskTable, numbered

_TICK_S = 0.2  # after which idle workers look for late tasks
_WINDOW = 256  # results that wait for an earlier one, at most


class Cluster:
    """An engine's workers.

    Args:
        engine: Closed with the cluster.
    Attributes:
        lost: Workers that ended though nobody asked them to, and why, in order.
        done: Tasks of the current run by the worker whose result counted.
    """

    def __init__(self, engine: Engine):
        self._engine = engine
        self._job: Job | None = None
        self._queues: dict[str, deque[str]] = {}  # of each worker that has joined: keys of tasks
        self._paces: dict[str, Pace] = {}
        self._since_s: dict[str, float] = {}
        self._runs = itertools.count()
        self._is_running = False
        self.lost: list[Lost] = []
        self.done: dict[str, int] = {}

    @property
    def workers(self) -> list[str]:
        """Names of those that are ready."""
        return sorted(self._queues)

    @property
    def pids(self) -> list[int]:
        """Process ids of the workers that are on this machine."""
        return self._engine.pids

    def load(self, job: Job, count: int = 1) -> None:
        """Have workers open a job, and wait until so many have.

        Raises:
            WorkerError: They can't be started.
        """
        if job is not self._job:
            self._job = None
            self._queues.clear()
            self._paces.clear()
            self._engine.load(job)
            self._job = job
        while len(self._queues) < count:
            for event in self._engine.wait(_TICK_S):
                self._take_stock(event)
            self._check_hope()

    def run(
        self,
        job: Job,
        payloads: Iterable[Any],
        total: int | None = None,
        record: Record | None = None,
        ahead: bool = True,
    ) -> Generator[Any, None, None]:
        """Results of tasks, in order.

        Args:
            job: What to do.
            payloads: One a task.
            total: How many, where that is known.
            record: Where finished tasks are kept, and found by a run that goes on.
            ahead: Give workers their next tasks while they are at one; not for tasks that may
                turn out not to be needed.
        Raises:
            WorkerError: No worker is left, or a task ends all that try it.
            Exception: Whatever the job raised.
        """
        if self._is_running:
            raise InputError("the workers are busy with another run: take its results first")
        self._is_running = True
        try:
            self.load(job, 0)
            table = TaskTable(numbered(payloads), record, _WINDOW)
            yield from self._run(table, f"{next(self._runs)}/", total, ahead)
        finally:
            self._is_running = False

    def close(self) -> None:
        """End the workers."""
        self._engine.close()

    def _run(self, table: TaskTable, run: str, total: int | None, ahead: bool) -> Iterator[Any]:
        self.done, finished = {}, 0
        while not table.is_finished:
            for worker in self.workers:
                if ahead or not self._queues[worker]:
                    remaining = None if total is None else total - finished
                    self._feed(worker, table, run, self._shard(worker, remaining) if ahead else 1)
            for result in table.give_back():
                finished += 1
                yield result
            if table.is_finished:
                return
            if not table.is_waiting:
                continue
            for event in self._engine.wait(_TICK_S):
                self._act(event, table, run)
            self._check_hope()

    def _shard(self, worker: str, remaining: int | None) -> int:
        """Tasks that a worker should have now; none where it has more than one yet.

        Where few remain, no worker has more than an even part: one isn't idle while another waits.
        """
        if len(self._queues[worker]) > 1:
            return 0
        size = 1 + shard_size(self._paces[worker], list(self._paces.values()), remaining)
        if remaining is None:
            return size
        # One at least: only who asks for a task finds that there is none left.
        return max(1, min(size, -(-remaining // len(self._queues))))

    def _feed(self, worker: str, table: TaskTable, run: str, count: int) -> None:
        """Give a worker tasks until it has so many."""
        queue = self._queues[worker]
        if len(queue) >= count:
            return
        now_s = time.monotonic()
        for task in table.take(worker, count - len(queue), now_s):
            if not queue:
                self._since_s[worker] = now_s
            queue.append(run + task.id)
            self._engine.submit(worker, run + task.id, task.payload)

    def _act(self, event: Event, table: TaskTable, run: str) -> None:
        queue = self._queues.get(event.worker, deque())
        began = queue[0] if queue else ""
        if isinstance(event, Lost):
            at = began.removeprefix(run) if began.startswith(run) else None
            table.release(event.worker, at, event.why)
        elif isinstance(event, Failed) and (not event.id or event.id.startswith(run)):
            self._take_stock(event)  # its worker is free for another run
            raise event.error from RuntimeError(f"in worker {event.worker}:\n{event.where}")
        elif isinstance(event, Answered) and queue:
            now_s = time.monotonic()
            self._paces[event.worker].add(now_s - self._since_s[event.worker])
            self._since_s[event.worker] = now_s
            id = event.id.removeprefix(run)
            if event.id.startswith(run) and table.finish(id, event.worker, event.result, now_s):
                self.done[event.worker] = self.done.get(event.worker, 0) + 1
            if len(queue) > 1:
                table.began(queue[1].removeprefix(run), event.worker, now_s)
        self._take_stock(event)

    def _take_stock(self, event: Event) -> None:
        """Note who is there."""
        if isinstance(event, Joined):
            self._queues[event.worker] = deque()
            self._paces[event.worker] = Pace()
        elif isinstance(event, Lost):
            self.lost.append(event)
            self._queues.pop(event.worker, None)
            self._paces.pop(event.worker, None)
        elif isinstance(event, Failed) and not event.id:
            raise event.error from RuntimeError(f"in worker {event.worker}:\n{event.where}")
        elif self._queues.get(event.worker):
            self._queues[event.worker].popleft()

    def _check_hope(self) -> None:
        if self._engine.is_hopeless:
            last = self.lost[-1].why if self.lost else "none could be started"
            raise WorkerError(f"no worker is left: {last}")
