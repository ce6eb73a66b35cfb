"""Files that are either whole or absent, and folders that one run owns at a time."""

import contextlib
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from tauten.core.errors import BusyError, DiskError, InputError
from tauten.core.figures import format_bytes

try:
    import fcntl
except ImportError:  # not on Windows; there an exclusive open serves
    fcntl = None  # type: ignore[assignment]


def given_path(name: str, value: Any) -> Path:
    """A path that a user passed.

    Args:
        name: Of the argument.
        value: Its value.
    Raises:
        InputError: It is no path.
    """
    if not isinstance(value, str | os.PathLike):
        raise InputError(f"{name}={value!r}: expected a path, such as 'folder/name'")
    return Path(value)


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """Write a file under a temporary name; it takes its own when its bytes are on the disk.

    Raises:
        DiskError: The disk is full; nothing is left behind.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("wb") as opened:
            yield opened
            opened.flush()
            os.fsync(opened.fileno())
        temporary.replace(path)
        sync_folder(path.parent)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskError(
                f"{path}: the disk is full; free some space and run the same command again"
            ) from None
        raise


def write_text(path: Path, text: str) -> None:
    """Write a text file whole."""
    with whole_file(path) as opened:
        opened.write(text.encode())


def write_json(path: Path, value: Any) -> None:
    """Write JSON whole, with sorted keys so that equal values give equal bytes."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n")


def sync_folder(folder: Path) -> None:
    """Make a rename inside a folder survive a power cut, where the system can."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's contents, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as opened:
        while chunk := opened.read(2**20):
            digest.update(chunk)
    return digest.hexdigest()


def check_free_space(folder: Path, needed_bytes: int) -> None:
    """Refuse work whose output wouldn't fit the disk.

    Args:
        folder: Where it will be written; needn't exist yet.
    """
    existing = folder
    while not existing.exists():
        existing = existing.parent
    free = shutil.disk_usage(existing).free
    if needed_bytes > free:
        raise DiskError(
            f"{folder}: needs {format_bytes(needed_bytes)} of disk, {format_bytes(free)} are free; "
            "free some and run the same again, or pass another output folder"
        )


@contextlib.contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Hold a folder for this process; the hold ends with the process, however it ends.

    Raises:
        BusyError: Another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("a+") as opened:
        if fcntl is not None:
            try:
                fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise BusyError(
                    f"{folder}: another run is writing there; wait for it or pass another folder"
                ) from None
        yield
