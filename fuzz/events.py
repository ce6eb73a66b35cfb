"""Every change that a process makes to files, counted as it is about to happen."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

_CHANGES = {
    *("os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.truncate", "os.link", "os.symlink"),
}
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
Change = Callable[[int, str, str], None]


def watch(folder: Path, happens: Change) -> None:
    """Have a function called before each change below a folder, in this process alone.

    A flush to the disk is one as well, and then left out: what is written outlives the process.

    Args:
        folder: Absolute.
        happens: Gets the number of the change, from 1 on, what it is, and the (last) path of it.
    """
    owner, count, inside = os.getpid(), 0, os.fspath(folder) + os.sep

    def changed(event: str, path: Any, descriptor: int = -1) -> None:
        nonlocal count
        full = _full(path, descriptor)
        if os.getpid() == owner and (full + os.sep).startswith(inside):
            count += 1
            happens(count, event, full)

    def hear(event: str, details: tuple[Any, ...]) -> None:
        if event == "open" and isinstance(details[2], int) and details[2] & _WRITES:
            changed(event, details[0])
        elif event == "os.rename":
            changed(event, details[1], details[3])
        elif event in _CHANGES:
            changed(event, details[0], details[-1] if event != "os.truncate" else -1)

    sys.addaudithook(hear)
    os.fsync = lambda descriptor: changed("os.fsync", descriptor)


def _full(path: Any, descriptor: Any) -> str:
    """An absolute path of what a call was given."""
    if isinstance(path, int):
        return _of_descriptor(path)
    if isinstance(path, bytes):
        path = os.fsdecode(path)
    if not isinstance(path, str | os.PathLike):
        return ""
    if isinstance(descriptor, int) and descriptor >= 0:
        return os.path.join(_of_descriptor(descriptor), path)
    return os.path.abspath(path)


def _of_descriptor(descriptor: int) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{descriptor}")
    except OSError:
        return ""
