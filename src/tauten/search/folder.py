"""The folder that a run works in, beside the one that it makes."""

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tauten.core.errors import BusyError, InputError
from tauten.core.files import check_free_space, exclusive

PARTIAL = ".partial"


def check_out(out: Path | None) -> None:
    """Refuse an output folder that exists, unless it is that of a run to be finished."""
    if out is not None and out.exists() and not is_unfinished(out):
        raise BusyError(f"{out} exists; delete it or pass another output folder")


def is_unfinished(out: Path) -> bool:
    """Whether a run that writes a folder was stopped, so that the same call goes on with it."""
    return _partial(out).exists()


def _partial(out: Path) -> Path:
    out = out.absolute()  # `.` has no name of its own
    return out.with_name(out.name + PARTIAL)


@contextlib.contextmanager
def run_folder(out: Path | None, disk_bytes: int) -> Iterator[Path]:
    """The folder that a run works in, held exclusively; removed when the run is done.

    With `out` it stays after a failure or a kill, so that the same command goes on from there;
    not after an argument was refused.

    Raises:
        BusyError: `out` exists, or another run writes it.
    """
    if out is None:
        with tempfile.TemporaryDirectory(prefix="tauten-") as temporary:
            check_free_space(Path(temporary), disk_bytes)
            yield Path(temporary)
        return
    folder = _partial(out)
    done = folder.with_name(folder.name + ".done")
    shutil.rmtree(done, ignore_errors=True)
    check_out(out)
    held = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    check_free_space(folder, disk_bytes - held)
    with exclusive(folder):
        try:
            yield folder
        except InputError:
            if not any(folder.rglob("*.safetensors")):  # nothing that another call could go on from
                shutil.rmtree(folder)
            raise
    # In one step: a kill half-way through must not leave a folder that has lost its journal.
    folder.rename(done)
    shutil.rmtree(done, ignore_errors=True)
