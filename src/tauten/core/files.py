"""Files that are either whole or absent, and folders that one run owns at a time.

Every file that Tauten writes goes through `whole_file`, but for journals, which grow. No link is
followed where something is written, and what a disk refuses is said in one line.
"""

import contextlib
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, BinaryIO

from tauten.core.errors import BusyError, DiskError, InputError
from tauten.core.figures import format_bytes

try:
    import fcntl
except ImportError:  # not on Windows; there an exclusive open serves
    fcntl = None  # type: ignore[assignment]

TEMPORARY = ".tmp"  # ends the name of a file that is being written
DISK_ERRORS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO})
_FULL = "the disk is full; free some, then the same command goes on where it stopped"
_CLOSED = "can't be written ({}); make it writable, or pass another place"
_GONE = "its folder isn't there (any more); make it, and run the same command again"
_SAID = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), _FULL),
    **dict.fromkeys((errno.EROFS, errno.EACCES, errno.EPERM), _CLOSED),
    **dict.fromkeys((errno.ENOENT, errno.ENOTDIR, errno.ESTALE), _GONE),
    errno.ELOOP: "is a symbolic link; Tauten doesn't write through links: remove it",
    errno.EIO: "the disk fails ({}); check it, or pass a folder on another",
}
_OTHER = "can't be written ({}); pass another place"


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


def disk_error(path: str | Path, error: OSError) -> DiskError:
    """What to say of a system's error while something is written.

    Args:
        path: Of that; the error itself may name another file.
        error: What the system said.
    """
    said = _SAID.get(error.errno or 0, _OTHER).format(error.strerror or error)
    named = str(error.filename or "")
    return DiskError(f"{named if named and not named.endswith(TEMPORARY) else path}: {said}")


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Say in one line what the system refuses of work inside that writes a file or folder.

    Raises:
        DiskError: The disk is full, read-only or failing, or the folder is gone.
    """
    try:
        yield
    except OSError as error:
        raise disk_error(path, error) from None


def refuse_link(path: Path) -> None:
    """Refuse to write through a link, which may lead anywhere."""
    if path.is_symlink():
        raise InputError(
            f"{path} is a symbolic link; Tauten doesn't write through links: remove it"
        )


def make_folder(folder: Path) -> None:
    """Make a folder, and those above it, where it isn't there yet; a link is refused."""
    refuse_link(folder)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """Write a file under a temporary name; it takes its own when its bytes are on the disk.

    The temporary file is made by an exclusive open and locked until then, so two processes never
    write into one, and what a killed one has left is told from what is being written.

    Raises:
        InputError: A link stands in its place.
        BusyError: Another process is writing it.
        DiskError: The disk refuses; nothing is left behind.
    """
    refuse_link(path)
    temporary = path.with_name(path.name + TEMPORARY)
    with writing(path), _new_file(temporary) as opened:
        try:
            yield opened
            opened.flush()
            os.fsync(opened.fileno())
            if fcntl is None:  # Windows renames no open file
                opened.close()
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)


def write_text(path: Path, text: str) -> None:
    """Write a text file whole."""
    with whole_file(path) as opened:
        opened.write(text.encode())


def write_json(path: Path, value: Any) -> None:
    """Write JSON whole, with sorted keys so that equal values give equal bytes."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n")


def copy_file(file: Path, out: Path) -> None:
    """Copy a file whole."""
    with file.open("rb") as opened, whole_file(out) as copied:
        shutil.copyfileobj(opened, copied, 2**20)


def open_to_append(path: Path, is_new: bool = True) -> IO[bytes]:
    """Open a file at its end, unbuffered; no link, and no absent one unless it is new."""

    def opener(name: str, flags: int) -> int:
        return _open_no_link(name, flags if is_new else flags & ~os.O_CREAT)

    return open(path, "ab", buffering=0, opener=opener)


def sync_folder(folder: Path) -> None:
    """Make a rename inside a folder survive a power cut, where the system can."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # as network disks say
                raise
        finally:
            os.close(descriptor)


def sync_files(folder: Path) -> None:
    """Bring all files of a folder to the disk, whoever wrote them."""
    for file in folder.rglob("*"):
        if file.is_file():
            with file.open("rb") as opened:
                os.fsync(opened.fileno())


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's contents, in hexadecimal.

    Raises:
        InputError: It can't be read.
    """
    digest = hashlib.sha256()
    if path.exists() and not path.is_file():  # a pipe would be waited on for ever
        raise InputError(f"{path}: can't be read (no file, but a folder, pipe or device)")
    try:
        with path.open("rb") as opened:
            while chunk := opened.read(2**20):
                digest.update(chunk)
    except OSError as error:
        raise InputError(f"{path}: can't be read ({error.strerror}); get it anew") from None
    return digest.hexdigest()


def check_free_space(folder: Path, needed_bytes: int) -> None:
    """Refuse work whose output wouldn't fit the disk.

    Args:
        folder: Where it will be written; needn't exist yet.
    """
    existing = folder
    with writing(folder):
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
        InputError: A link stands in its place.
        BusyError: Another process holds it.
        DiskError: The disk refuses, or knows no locks.
    """
    made, lock = not folder.exists(), folder / "lock"
    with contextlib.ExitStack() as stack:
        while True:  # whoever held it before may have removed it meanwhile
            make_folder(folder)
            with writing(lock):
                opened = stack.enter_context(open_to_append(lock))
            try:
                try_lock(opened.fileno())
            except BlockingIOError:
                raise BusyError(
                    f"{folder}: another run is writing there; wait for it or pass another folder"
                ) from None
            except OSError as error:
                if made:
                    shutil.rmtree(folder, ignore_errors=True)
                raise DiskError(
                    f"{folder}: this disk has no file locks ({error.strerror}), so two runs could "
                    "write there at once; pass a folder on another disk"
                ) from None
            if _is_at(opened, lock):
                break
        try:
            yield
        finally:
            if fcntl is not None:  # while it is held: whoever waits for it takes a new one
                lock.unlink(missing_ok=True)


def try_lock(descriptor: int) -> None:
    """Lock what is open until it is closed, by whoever.

    Raises:
        BlockingIOError: Another has locked it.
        OSError: The disk knows no locks.
    """
    if fcntl is not None:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _new_file(temporary: Path) -> BinaryIO:
    """Open a new file, locked, in place of what a killed process may have left there."""
    while True:
        try:
            opened = temporary.open("xb")
        except FileExistsError:
            _remove_left(temporary)
            continue
        try:
            try_lock(opened.fileno())
        except BlockingIOError:  # another process has just taken it for one that was left
            opened.close()
            continue
        except OSError:  # a disk without locks: there the exclusive open has to do
            return opened
        if _is_at(opened, temporary):
            return opened
        opened.close()


def _remove_left(temporary: Path) -> None:
    """Remove a temporary file, unless a process that lives is writing it."""
    refuse_link(temporary)
    try:
        left = open(temporary, "r+b", opener=_open_no_link)  # noqa: SIM115
    except FileNotFoundError:
        return
    with left:
        try:
            try_lock(left.fileno())
        except OSError:
            raise BusyError(
                f"{temporary}: another process is writing it; wait for it, or delete it if none is"
            ) from None
        if _is_at(left, temporary):
            temporary.unlink()


def _is_at(opened: IO[bytes], path: Path) -> bool:
    """Whether a path still names the file that is open."""
    try:
        return os.path.samestat(os.fstat(opened.fileno()), os.lstat(path))
    except FileNotFoundError:
        return False


def _open_no_link(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)
