"""Calls dealt out to groups of workers: results in order, and nothing lost when a worker dies."""

import itertools
import shutil
import tempfile
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from torch import Tensor

from tauten.core.errors import InputError, WorkerError
from tauten.core.trees import map_tensors
from tauten.parallel.group import Assignment, Group, WorkerEnded
from tauten.parallel.launcher import the_launcher
from tauten.parallel.parcel import Parcel
from tauten.parallel.worker import Failed

Results = dict[int, tuple[Group | None, Any]]  # outputs, and the group in whose memory they lie
_ATTEMPTS = 3  # of a call, or of loading, before it is given up
_WAITING_PER_GROUP = 2  # results that may wait for an earlier one


@dataclass
class Task:
    """A call of the model; `attempts` that ended with a worker."""

    index: int
    method: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    attempts: int = 0


class Pool:
    """Groups of workers that each hold the whole model between them.

    Args:
        parcel: The model.
        folder: With the parcel's files; removed when the pool is closed.
    """

    def __init__(self, parcel: Parcel, folder: Path):
        self._folder, self._parcel = folder, parcel
        self._groups: list[Group] = []
        self._assignments: list[list[Assignment]] = []
        self._task_of: dict[Group, Task] = {}
        self._failures: dict[Group, int] = {}
        self._names = itertools.count()
        self._lock, self._owner = threading.Lock(), 0

    def load(self, groups: Sequence[Sequence[Assignment]]) -> None:
        """Have workers load parts, and wait until all have.

        Raises:
            WorkerError: A worker can't.
        """
        with self._held():
            self._assignments = [list(group) for group in groups]
            while len(self._groups) > len(groups):
                self._groups.pop().close()
            while len(self._groups) < len(groups):
                folder = self._folder / f"group{next(self._names)}"
                self._groups.append(Group(folder, self._parcel))
            self._failures = dict.fromkeys(self._groups, 0)
            try:
                for group in self._groups:
                    self._start(group)
                while not all(group.is_ready for group in self._groups):
                    self._progress({})
            finally:
                for group in self._groups:
                    if not group.is_ready:  # it would answer this when it is asked something else
                        group.end()

    @property
    def pids(self) -> list[int]:
        """Process ids of all workers, by groups and ranks."""
        return [pid for group in self._groups for pid in group.pids]

    def run(
        self, calls: Iterable[tuple[str, tuple[Any, ...], dict[str, Any]]], lend: bool = False
    ) -> Iterator[Any]:
        """Compute calls, each by one group.

        Calls are drawn from the iterable only as groups get free and results are taken.

        Args:
            calls: Method, positional and keyword arguments of each.
            lend: Results may be views of shared memory that hold until the next `run`.
        Yields:
            Their outputs in order.
        Raises:
            WorkerError: A call ended its worker again and again.
            Exception: Whatever the model raised.
        """
        with self._held():
            try:
                yield from self._run(calls, lend)
            finally:
                for group in self._task_of:  # the caller has lost interest, or there was an error
                    group.end()
                self._task_of.clear()

    def close(self) -> None:
        """End all workers and remove their files."""
        for group in self._groups:
            group.close()
        self._groups = []
        shutil.rmtree(self._folder, ignore_errors=True)

    def _run(
        self, calls: Iterable[tuple[str, tuple[Any, ...], dict[str, Any]]], lend: bool
    ) -> Iterator[Any]:
        source = enumerate(calls)
        results: Results = {}
        drawn, given, more = 0, 0, True
        while True:
            for group in self._groups:
                room = drawn - given < _WAITING_PER_GROUP * len(self._groups)
                if group in self._task_of or not (more and room):
                    continue
                index, call = next(source, (-1, None))
                if call is None:
                    more = False
                    continue
                drawn += 1
                self._keep(results, group)
                self._task_of[group] = Task(index, *call)
                self._submit(group)
            while given in results:
                owner, outputs = results.pop(given)
                given += 1
                yield outputs if lend or owner is None else _cloned(outputs)
            if given == drawn and not more:
                return
            if self._task_of:
                self._progress(results)

    def _submit(self, group: Group) -> None:
        """Start on the group's task, or, where it must be loaded first, do that."""
        task = self._task_of[group]
        try:
            if not group.is_running:
                group.load(self._assignments[self._groups.index(group)])
            elif group.is_ready:
                group.submit(task.method, task.args, task.kwargs)
        except WorkerEnded as ended:
            self._recover(group, ended)

    def _progress(self, results: Results) -> None:
        """Wait for an answer of some group and act on it."""
        running = [group for group in self._groups if group.is_running]
        active = [group for group in running if group in self._task_of or not group.is_ready]
        ready = wait([c for group in active for c in group.connections])
        for group in active:
            was_ready = group.is_ready
            try:
                answer = group.receive(ready)
            except WorkerEnded as ended:
                self._recover(group, ended)
                continue
            if answer is None:
                continue
            if isinstance(answer, Failed):
                self._raise(group, answer)
            elif not was_ready:
                if group in self._task_of:
                    self._submit(group)
            else:
                self._failures[group] = 0
                results[self._task_of.pop(group).index] = (group, group.outputs())

    def _raise(self, group: Group, failed: Failed) -> None:
        """Raise the model's error here; workers whose peers wait for them start anew."""
        self._task_of.pop(group, None)
        if len(group.pids) > 1 or not group.is_ready:
            group.end()
        raise failed.error from RuntimeError(f"in a worker:\n{failed.where}")

    def _recover(self, group: Group, ended: WorkerEnded) -> None:
        """Start a group anew, and its task with it, unless that has failed too often."""
        self._failures[group] += 1
        task = self._task_of.get(group)
        if task is not None:
            task.attempts += 1
        if max(self._failures[group], task.attempts if task else 0) >= _ATTEMPTS:
            raise WorkerError(f"{_ATTEMPTS} times in a row {ended.describe()}") from None
        self._start(group)

    def _start(self, group: Group) -> None:
        try:
            group.load(self._assignments[self._groups.index(group)])
        except WorkerEnded as ended:
            self._recover(group, ended)

    def _keep(self, results: Results, group: Group) -> None:
        """Copy results that lie in a group's memory before it computes the next."""
        for index, (owner, outputs) in results.items():
            if owner is group:
                results[index] = (None, _cloned(outputs))

    @contextmanager
    def _held(self) -> Iterator[None]:
        if self._owner == threading.get_ident():
            raise InputError(
                "the workers are busy with a `map` of this thread: take its results first"
            )
        with self._lock:
            self._owner = threading.get_ident()
            try:
                yield
            finally:
                self._owner = 0


def pool_folder() -> Path:
    """A new folder for a pool, in memory."""
    return Path(tempfile.mkdtemp(prefix="pool-", dir=the_launcher().folder))


def _cloned(outputs: Any) -> Any:
    return map_tensors(Tensor.clone, outputs)
