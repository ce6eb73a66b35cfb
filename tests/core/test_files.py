"""Files are whole or absent; a folder belongs to one process at a time."""

import errno
import hashlib
import json
import math
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from tauten.core import files
from tauten.core.errors import BusyError, InputError, TautenError


def test_a_file_appears_only_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"old")
    with files.whole_file(path) as opened:
        opened.write(b"new")
        opened.flush()
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["weights"]


@pytest.mark.parametrize("error", [ValueError("x"), KeyboardInterrupt()])
def test_an_exception_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, error: BaseException
) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"old")
    with pytest.raises(type(error)), files.whole_file(path) as opened:
        opened.write(b"half")
        raise error
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["weights"]


REFUSALS = {
    errno.ENOSPC: "the disk is full; free some, then the same command goes on",
    errno.EDQUOT: "the disk is full; free some, then the same command goes on",
    errno.EROFS: "can't be written .Read-only file system.; make it writable, or pass another",
    errno.EACCES: "can't be written .Permission denied.; make it writable",
    errno.ENOENT: "its folder isn't there .any more.; make it, and run the same command again",
    errno.EIO: "the disk fails .Input/output error.; check it, or pass a folder on another",
    errno.EFBIG: "can't be written .File too large.; pass another place",
}


@pytest.mark.parametrize("code", REFUSALS)
@pytest.mark.parametrize("call", ["open", "write", "fsync", "replace"])
def test_what_a_disk_refuses_is_said_in_one_line_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, code: int
) -> None:
    (tmp_path / "weights").write_bytes(b"old")

    def refuse(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    owner = {"open": Path, "replace": Path, "fsync": os}.get(call)
    with (
        monkeypatch.context() as patch,
        pytest.raises(TautenError, match=f"weights: {REFUSALS[code]}") as caught,
    ):
        if owner is not None:
            patch.setattr(owner, call, refuse)
        with files.whole_file(tmp_path / "weights") as opened:
            opened.write(b"x" * 100)
            if call == "write":
                refuse()
    assert "\n" not in str(caught.value)
    assert os.listdir(tmp_path) == ["weights"] and (tmp_path / "weights").read_bytes() == b"old"


LIMITED = """
import resource, signal, sys
from pathlib import Path
from tauten.core.errors import TautenError
from tauten.core.files import whole_file
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, 2**16))
try:
    with whole_file(Path(sys.argv[1])) as opened:
        opened.write(b"x" * 2**20)
except TautenError as error:
    print(error)
"""


@pytest.mark.skipif(os.name != "posix", reason="limits are those of POSIX")
def test_a_file_that_the_system_cuts_short_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    said = subprocess.check_output([sys.executable, "-c", LIMITED, str(path)], text=True)
    assert said == f"{path}: can't be written (File too large); pass another place\n"
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", ["weights", "weights.tmp"])
@pytest.mark.parametrize("leads_to", ["victim", "nothing"])
def test_a_link_in_the_place_of_a_file_is_refused(tmp_path: Path, name: str, leads_to: str) -> None:
    victim = tmp_path / "elsewhere" / leads_to
    victim.parent.mkdir()
    if leads_to == "victim":
        victim.write_bytes(b"precious")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / name).symlink_to(victim)
    with pytest.raises(InputError, match=f"{name} is a symbolic link"):
        files.write_text(folder / "weights", "mine")
    assert os.listdir(folder) == [name] and (folder / name).is_symlink()
    assert not victim.exists() or victim.read_bytes() == b"precious"


def test_a_second_name_of_a_file_in_the_place_of_the_temporary_one_is_not_written_to(
    tmp_path: Path,
) -> None:
    (tmp_path / "victim").write_bytes(b"precious")
    os.link(tmp_path / "victim", tmp_path / "weights.tmp")
    files.write_text(tmp_path / "weights", "mine")
    assert (tmp_path / "victim").read_bytes() == b"precious"
    assert sorted(os.listdir(tmp_path)) == ["victim", "weights"]


WRITE = """
import sys
from pathlib import Path
from tauten.core.files import whole_file
with whole_file(Path(sys.argv[1])) as opened:
    opened.write(b"theirs")
    opened.flush()
    print("begun", flush=True)
    sys.stdin.readline()
"""


def test_only_one_process_writes_a_file_and_what_a_killed_one_left_is_replaced(
    tmp_path: Path,
) -> None:
    path = tmp_path / "weights"
    command = [sys.executable, "-c", WRITE, str(path)]
    writer = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert writer.stdout is not None
    try:
        assert writer.stdout.readline() == b"begun\n"
        with pytest.raises(BusyError, match="another process is writing it; wait for it"):
            files.write_text(path, "mine")
    finally:
        writer.kill()
        writer.communicate()
    assert os.listdir(tmp_path) == ["weights.tmp"]
    files.write_text(path, "mine")
    assert os.listdir(tmp_path) == ["weights"] and path.read_text() == "mine"


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_disk_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def refuse(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(files, "try_lock", refuse)
    files.write_text(tmp_path / "plan", "the exclusive open has to do")
    (tmp_path / "plan.tmp").touch()
    with pytest.raises(BusyError, match=r"plan\.tmp: another process is writing it; .* delete it"):
        files.write_text(tmp_path / "plan", "x")
    said = r"run: this disk has no file locks .*on another disk"
    with pytest.raises(TautenError, match=said), files.exclusive(tmp_path / "run"):
        pass
    assert sorted(os.listdir(tmp_path)) == ["plan", "plan.tmp"]


def test_bytes_are_synced_before_the_rename(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, seen = tmp_path / "weights", []

    def record(_: int) -> None:
        seen.append((path.exists(), sorted(p.stat().st_size for p in tmp_path.iterdir())))

    monkeypatch.setattr(os, "fsync", record)
    files.write_text(path, "héllo")
    assert seen[0] == (False, [6])
    assert seen[1:] == ([(True, [6])] if os.name == "posix" else [])


def test_a_disk_that_syncs_no_folders_is_written_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.fsync

    def refuse(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", refuse)
    files.write_text(tmp_path / "weights", "text")
    assert (tmp_path / "weights").read_text() == "text"


def test_what_can_not_be_read_has_no_digest(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="can't be read"):
        files.sha256_file(tmp_path)


def test_equal_values_give_equal_json(tmp_path: Path) -> None:
    files.write_json(tmp_path / "a", {"x": 1, "y": [1.5, None]})
    files.write_json(tmp_path / "b", {"y": [1.5, None], "x": 1})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert json.loads((tmp_path / "a").read_text()) == {"x": 1, "y": [1.5, None]}


def test_json_that_other_programs_could_not_read_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError):
        files.write_json(tmp_path / "a", {"x": math.nan})
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("size", [0, 1, 2**20, 2**20 + 3])
def test_sha256(tmp_path: Path, size: int) -> None:
    content = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    (tmp_path / "f").write_bytes(content)
    assert files.sha256_file(tmp_path / "f") == hashlib.sha256(content).hexdigest()


def test_work_that_does_not_fit_the_disk_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = {tmp_path: SimpleNamespace(free=5_000_000)}
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage[folder])
    absent = tmp_path / "not" / "there" / "yet"
    files.check_free_space(absent, 5_000_000)
    with pytest.raises(TautenError, match=r"needs 6\.00 MB of disk, 5\.00 MB are free"):
        files.check_free_space(absent, 6_000_000)


HOLD = """
import sys
from pathlib import Path
from tauten.core.files import exclusive
with exclusive(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.readline()
"""


def test_a_folder_is_held_until_its_process_is_killed(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert holder.stdout is not None
    try:
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(BusyError, match="another run"), files.exclusive(folder):
            pass
    finally:
        holder.kill()
        holder.communicate()
    with files.exclusive(folder):
        assert (folder / "lock").exists()


def test_a_link_in_the_place_of_a_folder_or_its_lock_is_refused(tmp_path: Path) -> None:
    (tmp_path / "victim").mkdir()
    (tmp_path / "run").symlink_to(tmp_path / "victim")
    with (
        pytest.raises(InputError, match="run is a symbolic link"),
        files.exclusive(tmp_path / "run"),
    ):
        pass
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "lock").symlink_to(tmp_path / "victim" / "made")
    with (
        pytest.raises(TautenError, match="lock: is a symbolic link"),
        files.exclusive(tmp_path / "other"),
    ):
        pass
    assert os.listdir(tmp_path / "victim") == []


def test_a_folder_that_its_holder_has_moved_away_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, lock = tmp_path / "run", files.try_lock

    def lock_late(descriptor: int) -> None:
        if not (tmp_path / "done").exists():  # as the end of another run may come in between
            folder.rename(tmp_path / "done")
        lock(descriptor)

    monkeypatch.setattr(files, "try_lock", lock_late)
    with files.exclusive(folder):
        assert (folder / "lock").exists()


def test_the_hold_ends_with_its_block(tmp_path: Path) -> None:
    with pytest.raises(ValueError), files.exclusive(tmp_path):
        raise ValueError
    with files.exclusive(tmp_path), pytest.raises(BusyError), files.exclusive(tmp_path):
        pass
    assert not list(tmp_path.iterdir()), "nor is the lock left"
