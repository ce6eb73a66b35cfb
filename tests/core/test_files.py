"""Files are whole or absent; a folder belongs to one process at a time."""

import errno
import hashlib
import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from tauten.core import files
from tauten.core.errors import BusyError, TautenError


def test_a_file_appears_only_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"old")
    with files.whole_file(path) as opened:
        opened.write(b"new")
        opened.flush()
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["weights"]


@pytest.mark.parametrize("error", [ValueError("x"), KeyboardInterrupt(), OSError(errno.EIO, "x")])
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


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("call", ["fsync", "write"])
def test_a_full_disk_is_said_in_one_line_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, code: int
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    if call == "fsync":
        monkeypatch.setattr(os, "fsync", refuse)
    with (
        pytest.raises(TautenError, match="weights: the disk is full"),
        files.whole_file(tmp_path / "weights") as opened,
    ):
        opened.write(b"x" * 100)
        if call == "write":
            refuse()
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
def test_a_device_that_is_full(tmp_path: Path) -> None:
    (tmp_path / "weights.tmp").symlink_to("/dev/full")
    with (
        pytest.raises(TautenError, match="the disk is full"),
        files.whole_file(tmp_path / "weights") as opened,
    ):
        opened.write(b"x" * 2**16)
    assert os.listdir(tmp_path) == []


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


def test_the_hold_ends_with_its_block(tmp_path: Path) -> None:
    with pytest.raises(ValueError), files.exclusive(tmp_path):
        raise ValueError
    with files.exclusive(tmp_path), pytest.raises(BusyError), files.exclusive(tmp_path):
        pass
