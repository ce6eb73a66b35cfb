"""Worker processes on this machine, started by `tauten.parallel`; tensors in shared memory."""

import shutil
from collections import deque
from collections.abc import Sequence
from multiprocessing.connection import wait
from typing import Any

from torch import Tensor

from tauten.core.temporary import remove_orphans
from tauten.core.trees import map_tensors
from tauten.distributed.engine import Answered, Event, Failed, Joined, Lost
from tauten.distributed.job import Job, JobPart
from tauten.parallel import worker as process
from tauten.parallel.executors import device_of
from tauten.parallel.group import Assignment, Group, WorkerEnded
from tauten.parallel.parcel import Parcel
from tauten.parallel.pool import pool_folder

_STARTS = 3  # in a row that may fail before a worker is given up


class LocalEngine:
    """Processes of one task each at a time; more wait here.

    Args:
        workers: How many.
        threads: Of each.
    """

    def __init__(self, workers: int, threads: int):
        self._threads = threads
        self._folder = pool_folder()
        self._groups: dict[str, Group] = {}
        self._names = [f"local{number}" for number in range(workers)]
        self._waiting: dict[str, deque[tuple[str, Any]]] = {}
        self._current: dict[str, str] = {}  # the task that each worker is at
        self._failures = dict.fromkeys(self._names, 0)
        self._job: Job | None = None
        self._events: list[Event] = []

    @property
    def size(self) -> int:
        """Workers that weren't given up."""
        return len(self._names if self._job is None else self._groups)

    @property
    def pids(self) -> list[int]:
        """Process ids of the workers."""
        return [pid for group in self._groups.values() for pid in group.pids]

    @property
    def is_hopeless(self) -> bool:
        """Whether all workers were given up."""
        return self._job is not None and not self._groups and not self._events

    def load(self, job: Job) -> None:
        """Start each worker, or have it open another job."""
        for name, group in self._groups.items():
            group.close()
            shutil.rmtree(self._folder / name)
        self._job, self._groups, self._current, self._events = job, {}, {}, []
        for name in self._names:
            self._groups[name] = Group(self._folder / name, Parcel("job"))
            self._start(name)

    def submit(self, worker: str, id: str, payload: Any) -> None:
        """Start on it, or let it wait until the worker is free."""
        self._waiting[worker].append((id, payload))
        self._go_on(worker)

    def wait(self, timeout_s: float) -> Sequence[Event]:
        """As `Engine.wait`."""
        busy = {n: g for n, g in self._groups.items() if n in self._current or not g.is_ready}
        connections = [c for group in busy.values() for c in group.connections]
        ready = wait(connections, 0 if self._events else timeout_s)
        for name, group in busy.items():
            was_ready = group.is_ready
            try:
                answer = group.receive(ready)
            except WorkerEnded as ended:
                self._recover(name, ended)
                continue
            if isinstance(answer, process.Failed):
                self._fail(name, answer)
            elif answer is not None and not was_ready:
                self._failures[name] = 0
                self._events.append(Joined(name))
            elif answer is not None:
                outputs = map_tensors(Tensor.clone, group.outputs())
                self._events.append(Answered(name, self._current.pop(name), outputs))
                self._go_on(name)
        events, self._events = self._events, []
        return events

    def close(self) -> None:
        """End the processes."""
        for group in self._groups.values():
            group.close()
        self._groups = {}
        shutil.rmtree(self._folder, ignore_errors=True)
        remove_orphans()  # of the workers, which end without removing theirs

    def _start(self, name: str) -> None:
        assert self._job is not None, "a job comes first"
        self._waiting[name] = deque()
        place = process.Place(0, 1, self._threads, device_of(self._names.index(name)))
        try:
            self._groups[name].load([Assignment(JobPart(self._job), place)])
        except WorkerEnded as ended:
            self._recover(name, ended)

    def _go_on(self, name: str) -> None:
        """Start on the next task that waits, if the worker is free."""
        if name in self._current or not self._waiting[name]:
            return
        id, payload = self._waiting[name].popleft()
        self._current[name] = id
        try:
            self._groups[name].submit("task", (payload,), {})
        except WorkerEnded as ended:
            self._recover(name, ended)

    def _fail(self, name: str, answer: process.Failed) -> None:
        id = self._current.pop(name, "")
        error = answer.error
        if not isinstance(error, Exception):
            raise error
        self._events.append(Failed(name, id, error, answer.where))
        if id:
            self._go_on(name)

    def _recover(self, name: str, ended: WorkerEnded) -> None:
        """Start a worker anew, unless that has failed too often."""
        self._current.pop(name, None)
        self._failures[name] += 1
        self._events.append(Lost(name, ended.describe()))
        if self._failures[name] >= _STARTS:
            self._groups.pop(name).close()
            shutil.rmtree(self._folder / name)
        else:
            self._start(name)
