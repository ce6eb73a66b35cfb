"""Progress bars for people: shown on a terminal, silent elsewhere."""

import io
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, redirect_stderr
from contextvars import ContextVar
from typing import TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

T = TypeVar("T")
_current: ContextVar[Progress | None] = ContextVar("progress", default=None)


@contextmanager
def progress_bars() -> Iterator[None]:
    """Show the bars of all `track` calls inside, if standard error is a terminal."""
    if _current.get() is not None or not sys.stderr.isatty():
        yield
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(compact=True),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        token = _current.set(progress)
        try:
            yield
        finally:
            _current.reset(token)


@contextmanager
def quiet_elsewhere() -> Iterator[None]:
    """Let a library draw its own bars on a terminal only."""
    if sys.stderr.isatty():
        yield
    else:
        with redirect_stderr(io.StringIO()):
            yield


@contextmanager
def progress_bar(description: str, total: float) -> Iterator[Callable[[float, str], None]]:
    """A bar inside `progress_bars`; it is moved by calling it with what is done and a note."""
    progress = _current.get()
    if progress is None:
        yield lambda done, note: None
        return
    task = progress.add_task(description, total=total)

    def show(done: float, note: str) -> None:
        progress.update(task, completed=done, description=f"{description}, {note}")

    try:
        yield show
    finally:
        progress.remove_task(task)


def track(items: Iterable[T], description: str, total: int) -> Iterator[T]:
    """Iterate with a bar inside `progress_bars`, plainly outside."""
    progress = _current.get()
    if progress is None:
        yield from items
        return
    task = progress.add_task(description, total=total)
    try:
        for item in items:
            yield item
            progress.advance(task)
    finally:
        progress.remove_task(task)
