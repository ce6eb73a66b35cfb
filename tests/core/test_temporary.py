"""Temporary folders go with their process; the next one removes those of a killed one."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tauten.core import temporary
from tauten.core.errors import TautenError
from tauten.core.temporary import TemporaryFolder, remove_orphans

HOLD = """
import sys, tempfile
from pathlib import Path
from tauten.core import temporary
from tauten.core.temporary import TemporaryFolder
tempfile.tempdir, temporary.SHARED_MEMORY = sys.argv[1], Path(sys.argv[2])
held = [TemporaryFolder(), TemporaryFolder(Path(sys.argv[2]))]
for folder in held:
    (folder.path / "deep").mkdir()
    (folder.path / "deep" / "file").write_text("x")
print("held", flush=True)
sys.stdin.readline()
"""


@pytest.fixture(autouse=True)
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """Where temporary files and shared memory are."""
    disk, memory = tmp_path / "tmp", tmp_path / "shm"
    disk.mkdir()
    memory.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(disk))
    monkeypatch.setattr(temporary, "SHARED_MEMORY", memory)
    return disk, memory


def test_a_folder_is_removed_with_its_block_its_object_and_its_process(
    places: tuple[Path, Path],
) -> None:
    with TemporaryFolder() as folder:
        assert folder.parent == places[0] and os.listdir(folder) == []
    assert not folder.exists()
    made = TemporaryFolder(places[1])
    path = made.path
    assert path.parent == places[1]
    del made
    assert not path.exists()
    command = [sys.executable, "-c", HOLD, *map(str, places)]
    assert subprocess.check_output(command, stdin=subprocess.DEVNULL) == b"held\n"
    assert [list(place.iterdir()) for place in places] == [[], []]


@pytest.mark.skipif(os.name != "posix", reason="folders are locked on POSIX")
def test_folders_of_a_killed_process_are_removed_by_the_next_and_those_of_others_stay(
    places: tuple[Path, Path],
) -> None:
    disk, memory = places
    stay = [disk / "tauten-results", disk / "tauten-tmp-results", memory / "tauten-mine"]
    for folder in stay:
        folder.mkdir(0o755 if "tmp" in folder.name else 0o700)
    (disk / "tauten-tmp-link").symlink_to(stay[0])
    (disk / "tauten-tmp-file").touch()
    command = [sys.executable, "-c", HOLD, *map(str, places)]
    holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert holder.stdout is not None
    try:
        assert holder.stdout.readline() == b"held\n"
        remove_orphans()
        held = [folder for place in places for folder in place.glob("tauten-tmp-*/deep/file")]
        assert len(held) == 2
    finally:
        holder.kill()
        holder.communicate()
    assert all(file.exists() for file in held)
    own = TemporaryFolder()
    assert sorted(disk.iterdir()) == sorted(
        [*stay[:2], own.path, disk / "tauten-tmp-link", disk / "tauten-tmp-file"]
    )
    assert list(memory.iterdir()) == [stay[2]]


@pytest.mark.skipif(os.name != "posix", reason="forks are those of POSIX")
def test_a_fork_of_the_process_removes_nothing() -> None:
    made = TemporaryFolder()
    child = os.fork()
    if child == 0:
        made.close()
        os._exit(0)
    os.waitpid(child, 0)
    assert made.path.exists()


@pytest.mark.skipif(os.name != "posix", reason="folders are locked on POSIX")
def test_a_folder_that_is_taken_before_it_is_locked_is_made_anew(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lock, seen = temporary._lock, []

    def lock_late(folder: Path) -> int | None:
        seen.append(folder)
        if len(seen) == 1:
            folder.rmdir()
        return lock(folder)

    monkeypatch.setattr(temporary, "_lock", lock_late)
    made = TemporaryFolder()
    assert made.path.exists() and len(seen) == 2


def test_where_no_folder_can_be_made_it_is_said_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(TautenError, match=r"absent: no temporary folder can be made .*TMPDIR"):
        TemporaryFolder(tmp_path / "absent")
