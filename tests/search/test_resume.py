"""Killed at any point, a run goes on and ends with the same bytes."""

import multiprocessing
import os
import random
import shutil
import signal
import sys
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path

import pytest

import tauten
from tauten.search.folder import check_out, run_folder

KILLS = 12
CHANGES = {"open", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.truncate"}


def run_once(folder: str, out: str, texts: list[str], kill_at: int, changes: Synchronized) -> None:
    """What each process does, until it is killed before its n-th change of a file."""
    import torch

    from tauten.search import publish

    torch.set_num_threads(1)
    publish.resident_bytes = lambda model: 1  # spares two processes

    def count(event: str, details: tuple[object, ...]) -> None:
        reads = event == "open" and details[1] == "r"
        if event not in CHANGES or reads or not str(details[0]).startswith(out):
            return
        changes.value += 1
        if changes.value == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)
    tauten.optimize(folder, texts, tauten.Goal(max_drop=0.05), out=out, max_tokens=1500)


def test_killed_runs_end_with_the_same_bytes(llama_folder: Path, texts, tmp_path: Path) -> None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tauten.api", "transformers.models.llama.modeling_llama"])

    def run(out: Path, kill_at: int = 0) -> tuple[int | None, int]:
        """Exit code, and how many changes it came to."""
        changes = context.Value("i", 0)
        arguments = (str(llama_folder), str(out), texts, kill_at, changes)
        process = context.Process(target=run_once, args=arguments)
        process.start()
        process.join()
        return process.exitcode, changes.value

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    code, total = run(whole)
    assert code == 0 and total > 10 * KILLS
    generator = random.Random(0)
    for _ in range(KILLS):
        code, _ = run(killed, generator.randrange(1, 2 * total // KILLS))
        assert code == -signal.SIGKILL
        assert not killed.exists() or (killed / "tauten.json").exists(), "half an artifact"
    assert run(killed)[0] == 0
    for file in ("model.safetensors", "tauten.json", "recipe.yaml", "config.json"):
        assert (killed / file).read_bytes() == (whole / file).read_bytes(), file
    assert not killed.with_name("killed.partial").exists()


def test_what_was_being_removed_is_removed_by_the_next_run(tmp_path: Path) -> None:
    (tmp_path / "one.partial.done" / "inside").mkdir(parents=True)
    (tmp_path / "two.partial").mkdir()
    (tmp_path / "two.partial.done").mkdir()
    with run_folder(tmp_path / "one", 0):
        pass
    assert sorted(os.listdir(tmp_path)) == ["two.partial", "two.partial.done"]


def test_a_kill_while_a_run_clears_up_leaves_it_finished(tmp_path: Path, monkeypatch) -> None:
    out = tmp_path / "out"

    def killed(folder: Path, **_: bool) -> None:
        if folder.exists():
            (folder / "journal.jsonl").unlink()
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(shutil, "rmtree", killed)
        with run_folder(out, 0) as folder:
            (folder / "journal.jsonl").touch()
            out.mkdir()
    with pytest.raises(tauten.BusyError, match="exists"), run_folder(out, 0):
        pass
    assert list(tmp_path.iterdir()) == [out]


def test_a_command_that_is_refused_still_clears_up_after_a_killed_one(tmp_path: Path) -> None:
    """The command line looks at the folder before it loads anything, and so before `run_folder`."""
    (tmp_path / "out.partial.done" / "inside").mkdir(parents=True)
    (tmp_path / "out").mkdir()
    with pytest.raises(tauten.BusyError, match="exists"):
        check_out(tmp_path / "out")
    assert os.listdir(tmp_path) == ["out"]
