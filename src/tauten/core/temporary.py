"""Folders that go with the process that made them, however that ends."""

import contextlib
import os
import shutil
import stat
import tempfile
import weakref
from collections.abc import Iterator
from pathlib import Path

from tauten.core.errors import DiskError
from tauten.core.files import try_lock

SHARED_MEMORY = Path("/dev/shm")
_PREFIX = "tauten-tmp-"


class TemporaryFolder:
    """A new folder, removed by `close`, with this object, or at the end of the process.

    It is locked as long as the process lives: by that the next one tells, and removes, what a
    killed one has left.

    Args:
        place: Where; by default as `TMPDIR` says.
    Attributes:
        path: The folder.
    Raises:
        DiskError: No folder can be made there.
    """

    def __init__(self, place: Path | None = None):
        remove_orphans()
        lock = None
        while lock is None:  # another process may just have taken it for one that was left
            try:
                self.path = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=place))
            except OSError as error:
                raise DiskError(
                    f"{place or 'TMPDIR'}: no temporary folder can be made there "
                    f"({error.strerror}); free some disk, or name another folder by TMPDIR"
                ) from None
            try:
                lock = _lock(self.path)
            except OSError:  # a disk without locks: there nobody takes it for one that was left
                lock = -1
        self.close = weakref.finalize(self, _remove, self.path, lock, os.getpid())

    def __enter__(self) -> Path:
        return self.path

    def __exit__(self, *_: object) -> None:
        self.close()


def remove_orphans() -> None:
    """Remove temporary folders whose process has ended without doing so."""
    with contextlib.suppress(OSError):  # there may be no place for them at all
        for folder in [*_folders_in(Path(tempfile.gettempdir())), *_folders_in(SHARED_MEMORY)]:
            with contextlib.suppress(OSError):
                lock = _lock(folder)
                if lock is not None:
                    _remove(folder, lock, os.getpid())


def _folders_in(place: Path) -> Iterator[Path]:
    """Folders in a place that were made here: by their name, and open to this user alone."""
    for entry in os.scandir(place) if place.is_dir() and os.name == "posix" else ():
        if entry.name.startswith(_PREFIX) and entry.is_dir(follow_symlinks=False):
            with contextlib.suppress(FileNotFoundError):
                facts = entry.stat(follow_symlinks=False)
                if facts.st_uid == os.geteuid() and stat.S_IMODE(facts.st_mode) == 0o700:
                    yield Path(entry.path)


def _lock(folder: Path) -> int | None:
    """Lock a folder.

    Returns:
        What holds the lock as long as it is open; None where another process does, or the folder
        is gone.
    Raises:
        OSError: The disk knows no locks.
    """
    if os.name != "posix":
        raise OSError("folders can't be locked here")
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None
    try:
        try_lock(descriptor)
        if os.path.samestat(os.fstat(descriptor), os.lstat(folder)):
            return descriptor
    except (BlockingIOError, FileNotFoundError):
        pass
    except BaseException:
        os.close(descriptor)
        raise
    os.close(descriptor)
    return None


def _remove(folder: Path, lock: int, owner: int) -> None:
    if os.getpid() == owner:  # not one that was forked from it
        shutil.rmtree(folder, ignore_errors=True)
        if lock >= 0:
            os.close(lock)
