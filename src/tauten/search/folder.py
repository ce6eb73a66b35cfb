"""The folder that a run works in, beside the one that it makes."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from tauten.core.errors import BusyError, InputError
from tauten.core.files import DISK_ERRORS, check_free_space, disk_error, exclusive, writing
from tauten.core.temporary import TemporaryFolder, remove_orphans

PARTIAL = ".partial"
DONE = ".done"


def check_out(out: Path | None) -> None:
    """Refuse an output folder that exists, unless it is that of a run to be finished.

    What a run that was killed as it cleared up has left beside it goes.
    """
    if out is not None:
        shutil.rmtree(_done(out), ignore_errors=True)
    if out is not None and os.path.lexists(out) and not is_unfinished(out):
        raise BusyError(f"{out} exists; delete it or pass another output folder")


def is_unfinished(out: Path) -> bool:
    """Whether a run that writes a folder was stopped, so that the same call goes on with it."""
    return _partial(out).exists()


def _partial(out: Path) -> Path:
    out = out.absolute()  # `.` has no name of its own
    return out.with_name(out.name + PARTIAL)


def _done(out: Path) -> Path:
    """Where a run's folder goes to be removed."""
    folder = _partial(out)
    return folder.with_name(folder.name + DONE)


@contextlib.contextmanager
def run_folder(out: Path | None, disk_bytes: int) -> Iterator[Path]:
    """The folder that a run works in, held exclusively; removed when the run is done.

    With `out` it stays after a failure or a kill, so that the same command goes on from there;
    not after an argument was refused.

    Raises:
        BusyError: `out` exists, or another run writes it.
        DiskError: The disk refuses, or the folder was taken away.
    """
    if out is None:
        with TemporaryFolder() as temporary:
            check_free_space(temporary, disk_bytes)
            with _working_in(temporary):
                yield temporary
        return
    folder, done = _partial(out), _done(out)
    remove_orphans()
    check_out(out)
    with writing(folder):
        held = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    check_free_space(folder, disk_bytes - held)
    with exclusive(folder):
        try:
            with _working_in(folder):
                yield folder
        except InputError:
            if not any(folder.rglob("*.safetensors")):  # nothing that another call could go on from
                shutil.rmtree(folder, ignore_errors=True)
            raise
        # In one step: a kill half-way through must not leave a folder that has lost its journal.
        with _working_in(folder):
            folder.rename(done)
    shutil.rmtree(done, ignore_errors=True)


@contextlib.contextmanager
def _working_in(folder: Path) -> Iterator[None]:
    """Say in one line what a disk refuses of work in a folder; errors of a user's code pass."""
    try:
        yield
    except OSError as error:
        is_ours = str(error.filename or "").startswith(str(folder))
        if error.errno in DISK_ERRORS or is_ours or not folder.exists():
            raise disk_error(folder, error) from error
        raise
