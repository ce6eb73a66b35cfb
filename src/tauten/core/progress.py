"""Where long work is: bars on a terminal, a line every half minute elsewhere."""

import io
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, redirect_stderr
from contextvars import ContextVar
from time import monotonic
from typing import TypeVar

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from tauten.core.console import SafeConsole
from tauten.core.figures import format_seconds
from tauten.core.printing import logger

T = TypeVar("T")
LINE_S = 30.0  # between two lines
_log = logger(__name__)


class _Bars:
    """Bars on a terminal.

    Args:
        progress: That draws them.
    """

    def __init__(self, progress: Progress):
        self._progress = progress

    def begin(self, description: str, total: float) -> TaskID:
        """A new bar below the others."""
        return self._progress.add_task(description, total=total)

    def show(self, task: TaskID, description: str, done: float) -> None:
        """Move a bar."""
        self._progress.update(task, completed=done, description=description)

    def end(self, task: TaskID) -> None:
        """Take a bar away."""
        self._progress.remove_task(task)

    def best(self, text: str) -> None:
        """What was found so far; the log has said it."""


class _Lines:
    """A line of the log every half minute, with all that is going on and the best so far."""

    def __init__(self) -> None:
        self._tasks: dict[TaskID, tuple[str, float, float]] = {}
        self._best, self._number, self._began = "", 0, monotonic()
        self._ended = threading.Event()

    def begin(self, description: str, total: float) -> TaskID:
        """Another task inside those that go on."""
        self._number += 1
        task = TaskID(self._number)
        self._tasks[task] = (description, 0.0, total)
        return task

    def show(self, task: TaskID, description: str, done: float) -> None:
        """How far a task is."""
        self._tasks[task] = (description, done, self._tasks[task][2])

    def end(self, task: TaskID) -> None:
        """A task is done."""
        del self._tasks[task]

    def best(self, text: str) -> None:
        """What was found so far."""
        self._best = text

    def line(self) -> str:
        """All that goes on, outermost first."""
        doing = [
            f"{description} {done:.0f}/{total:.0f}"
            for description, done, total in list(self._tasks.values())
        ]
        parts = [format_seconds(round(monotonic() - self._began)), *doing, self._best]
        return "; ".join(part for part in parts if part)

    def write(self) -> None:
        """Write lines until `stop`, on a thread of its own."""
        while not self._ended.wait(LINE_S):
            _log.info("%s", self.line())

    def stop(self) -> None:
        """End writing."""
        self._ended.set()


_current: ContextVar[_Bars | _Lines | None] = ContextVar("progress", default=None)


@contextmanager
def progress_bars() -> Iterator[None]:
    """Show how far all `track` calls inside are, on the terminal or in the log."""
    if _current.get() is not None:
        yield
        return
    with _bars() if sys.stderr.isatty() else _lines() as shown:
        token = _current.set(shown)
        try:
            yield
        finally:
            _current.reset(token)


@contextmanager
def _bars() -> Iterator[_Bars]:
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(compact=True),
    )
    with Progress(*columns, console=SafeConsole(stderr=True), transient=True) as progress:
        yield _Bars(progress)


@contextmanager
def _lines() -> Iterator[_Lines]:
    lines = _Lines()
    writer = threading.Thread(target=lines.write, name="tauten-progress", daemon=True)
    writer.start()
    try:
        yield lines
    finally:
        lines.stop()
        writer.join()


@contextmanager
def quiet_elsewhere() -> Iterator[None]:
    """Let a library draw its own bars on a terminal only."""
    if sys.stderr.isatty():
        yield
    else:
        with redirect_stderr(io.StringIO()):
            yield


def show_best(text: str) -> None:
    """Say what was found so far, from now on, inside `progress_bars`."""
    shown = _current.get()
    if shown is not None:
        shown.best(text)


@contextmanager
def progress_bar(description: str, total: float) -> Iterator[Callable[[float, str], None]]:
    """A bar inside `progress_bars`; it is moved by calling it with what is done and a note."""
    shown = _current.get()
    if shown is None:
        yield lambda done, note: None
        return
    task = shown.begin(description, total)

    def show(done: float, note: str) -> None:
        shown.show(task, f"{description}, {note}" if note else description, done)

    try:
        yield show
    finally:
        shown.end(task)


def track(items: Iterable[T], description: str, total: int) -> Iterator[T]:
    """Iterate with a bar inside `progress_bars`, plainly outside."""
    with progress_bar(description, total) as show:
        for done, item in enumerate(items, 1):
            yield item
            show(done, "")
