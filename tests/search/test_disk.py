"""A disk that refuses: one line, nothing half-written, and the same command goes on."""

import errno
import itertools
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import tauten
from tauten.core import files
from tauten.core.errors import TautenError
from tauten.search.folder import check_out, run_folder

CODES = {errno.ENOSPC: "the disk is full", errno.EROFS: "can't be written", errno.EIO: "disk fails"}


def contents(folder: Path) -> dict[str, bytes]:
    found = (file for file in folder.rglob("*") if file.is_file())
    return {str(file.relative_to(folder)): file.read_bytes() for file in found}


def at_write(monkeypatch: pytest.MonkeyPatch, number: int, do: Callable[[], None]) -> list[int]:
    """Do something at the n-th time that bytes are brought to the disk; counts all."""
    count = [0]

    def sync(_: int) -> None:
        count[0] += 1
        if count[0] == number:
            do()

    monkeypatch.setattr(os, "fsync", sync)
    return count


def test_each_write_may_fail_and_the_same_call_goes_on(
    llama_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, out = tmp_path / "whole", tmp_path / "out"
    total = at_write(monkeypatch, 0, lambda: None)
    tauten.quantize(llama_folder, 8, out=whole)
    expected = contents(whole)
    assert total[0] > 30
    codes = itertools.cycle(CODES)
    for number in [*range(1, total[0] - 4, 5), *range(total[0] - 4, total[0] + 1)]:
        code = next(codes)

        def refuse(code: int = code) -> None:
            raise OSError(code, os.strerror(code))

        at_write(monkeypatch, number, refuse)
        with pytest.raises(TautenError, match=CODES[code]) as caught:
            tauten.quantize(llama_folder, 8, out=out)
        assert "\n" not in str(caught.value) and not list(tmp_path.rglob("*.tmp"))
        at_write(monkeypatch, 0, lambda: None)
        tauten.quantize(llama_folder, 8, out=out)
        assert contents(out) == expected, number
        shutil.rmtree(out)
    assert sorted(os.listdir(tmp_path)) == ["llama", "whole"]


@pytest.mark.parametrize("number", [1, 7, 20])
def test_a_folder_that_is_taken_away_ends_the_run_in_one_line(
    llama_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    out = tmp_path / "out"
    at_write(monkeypatch, number, lambda: shutil.rmtree(tmp_path / "out.partial"))
    with pytest.raises(TautenError) as caught:
        tauten.quantize(llama_folder, 8, out=out)
    assert "out.partial" in str(caught.value) and "\n" not in str(caught.value)
    assert not out.exists() and not list(tmp_path.rglob("*.tmp"))
    at_write(monkeypatch, 0, lambda: None)
    tauten.quantize(llama_folder, 8, out=out)
    assert sorted(os.listdir(tmp_path)) == ["llama", "out"]


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES])
def test_a_place_that_cant_be_written_is_said_before_any_work(
    llama_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def refuse(path: object, *_: object) -> None:
        raise OSError(code, os.strerror(code), str(path))

    monkeypatch.setattr(os, "mkdir", refuse)
    with pytest.raises(TautenError, match=r"out\.partial: can't be written .* pass another place"):
        tauten.quantize(llama_folder, 8, out=tmp_path / "out")
    assert os.listdir(tmp_path) == ["llama"]


def test_a_disk_without_locks_is_said_before_any_work(
    llama_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(files, "try_lock", refuse)
    with pytest.raises(TautenError, match=r"out\.partial: this disk has no file locks"):
        tauten.quantize(llama_folder, 8, out=tmp_path / "out")
    assert os.listdir(tmp_path) == ["llama"]


def test_links_in_the_place_of_what_a_run_writes_are_refused(tmp_path: Path) -> None:
    (tmp_path / "victim").mkdir()
    (tmp_path / "victim" / "file").touch()
    (tmp_path / "out").symlink_to(tmp_path / "nowhere")
    with pytest.raises(tauten.BusyError, match="out exists"):
        check_out(tmp_path / "out")
    (tmp_path / "other.partial").symlink_to(tmp_path / "victim")
    with pytest.raises(TautenError, match="is a symbolic link"), run_folder(tmp_path / "other", 0):
        pass
    assert os.listdir(tmp_path / "victim") == ["file"]


def test_errors_of_a_users_own_code_stay_what_they_are(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="theirs"), run_folder(tmp_path / "out", 0):
        (tmp_path / "theirs").read_text()
