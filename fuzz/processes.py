"""Calls in processes of their own, which are killed at a change of a file or after some time."""

import atexit
import contextlib
import ctypes
import mmap
import os
import signal
import struct
import sys
import tempfile
import threading
import time
import traceback
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fuzz.child import print_to
from fuzz.events import watch
from tauten.core.errors import TautenError

REFUSED = 2  # exit code of the command line for an error of ours
_SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER of linux/prctl.h
_COUNT = struct.Struct("<q")


@dataclass(frozen=True)
class End:
    """When a process is killed.

    Attributes:
        change: Before the change of a file of that number; 0 for never.
        after_s: After that time; 0 for never.
        rename_to: Before a rename to this path.
        family: Its descendants with it, as a power cut or the system's killer would.
    """

    change: int = 0
    after_s: float = 0.0
    rename_to: str = ""
    family: bool = False


@dataclass(frozen=True)
class Ended:
    """How a process ended: its exit code (negative: a signal), changes of files, and time."""

    code: int
    changes: int
    seconds: float


def run(call: Callable[[], object], place: Path, end: End, log: Path) -> Ended:
    """Call something in a fork, in a folder of its own.

    Args:
        call: Its errors become exit codes.
        place: Holds `work`, which it starts in, and `tmp`, for temporary files; watched.
        end: When to kill it.
        log: What it prints is added there.
    """
    become_reaper()
    counter, start = mmap.mmap(-1, _COUNT.size), time.monotonic()
    pid = os.fork()
    if pid == 0:
        _child(call, place, end, log, counter)
    status = None
    while status is None:
        ended, found = os.waitpid(pid, os.WNOHANG)
        status = found if ended else None
        if not ended and end.after_s and time.monotonic() - start > end.after_s:
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.002)
    if end.family:
        for orphan in descendants(os.getpid()):
            _kill(orphan)
    code = os.waitstatus_to_exitcode(status)
    return Ended(code, _COUNT.unpack_from(counter)[0], time.monotonic() - start)


def _child(
    call: Callable[[], object], place: Path, end: End, log: Path, counter: mmap.mmap
) -> None:
    code = 1
    _forget_parent()
    try:
        print_to(log.open("a"))
        os.chdir(place / "work")
        os.environ["TMPDIR"] = tempfile.tempdir = str(place / "tmp")

        def happens(number: int, event: str, path: str) -> None:
            _COUNT.pack_into(counter, 0, number)
            if number == end.change or (event == "os.rename" and path == end.rename_to):
                os.kill(os.getpid(), signal.SIGKILL)

        watch(place, happens)
        call()
        code = 0
    except TautenError:
        traceback.print_exc()
        code = REFUSED
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        _leave(code)


def _forget_parent() -> None:
    """Leave what is registered for the end of the parent to the parent."""
    atexit._clear()
    weakref.finalize._registry.clear()  # type: ignore[attr-defined]
    weakref.finalize._registered_with_atexit = False  # type: ignore[attr-defined]


def _leave(code: int) -> None:
    """End as Python does: threads first, then what was registered."""
    try:
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


def become_reaper() -> None:
    """Have processes whose parent was killed become children of this one, so that none hides."""
    ctypes.CDLL(None).prctl(_SUBREAPER, 1, 0, 0, 0)


def descendants(pid: int) -> list[int]:
    """Processes that a process has started, and those that these have."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            own = [int(word) for word in task.read_text().split()]
        except OSError:  # it has ended meanwhile
            own = []
        found += [*own, *(below for child in own for below in descendants(child))]
    return found


def wait_for_orphans(patience_s: float) -> list[str]:
    """Wait for all descendants to end; commands of those that didn't, which are killed."""
    until = time.monotonic() + patience_s
    while time.monotonic() < until and _collect():
        time.sleep(0.01)
    left = descendants(os.getpid())
    said = [f"{pid} {_command(pid)}" for pid in left if _command(pid)]
    for pid in left:
        _kill(pid)
    while _collect():
        time.sleep(0.01)
    return said


def _collect() -> bool:
    """Collect children that have ended; whether there are others."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return False
    return True


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _command(pid: int) -> str:
    """Empty where it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()[:300]
    except OSError:
        return ""
