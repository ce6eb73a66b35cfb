"""Killed at any point, a run goes on and ends with the same bytes."""

import multiprocessing
import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest

import tauten
from tauten.search.folder import run_folder

KILLS = 12


def run_once(folder: str, out: str, texts: list[str]) -> None:
    """What each process does: the same call."""
    import torch

    from tauten.search import publish

    torch.set_num_threads(1)
    publish.resident_bytes = lambda model: 1  # spares two processes
    tauten.optimize(folder, texts, tauten.Goal(max_drop=0.05), out=out, max_tokens=1500)


def lines(journal: Path) -> int:
    try:
        return journal.read_bytes().count(b"\n")
    except FileNotFoundError:  # not begun, or just finished
        return 0


def test_killed_runs_end_with_the_same_bytes(llama_folder: Path, texts, tmp_path: Path) -> None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tauten.api", "transformers.models.llama.modeling_llama"])
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    process = context.Process(target=run_once, args=(str(llama_folder), str(whole), texts))
    process.start()
    journal = tmp_path / "whole.partial/journal.jsonl"
    total = 0
    while process.is_alive():
        total = max(total, lines(journal))
        time.sleep(0.005)
    assert process.exitcode == 0 and total > KILLS

    generator, kills = random.Random(0), 0
    journal = tmp_path / "killed.partial/journal.jsonl"
    points = [*sorted(generator.sample(range(total), KILLS - 1)), total]
    for point in points:
        process = context.Process(target=run_once, args=(str(llama_folder), str(killed), texts))
        process.start()
        while process.is_alive() and lines(journal) < point:
            time.sleep(0.001)
        time.sleep(generator.random() * 0.05)
        if process.is_alive():
            os.kill(process.pid, signal.SIGKILL)
            kills += 1
        process.join()
        assert not killed.exists() or (killed / "tauten.json").exists(), "half an artifact"
    assert kills >= 10
    if not killed.exists() or killed.with_name("killed.partial").exists():
        run_once(str(llama_folder), str(killed), texts)
    for file in ("model.safetensors", "tauten.json", "recipe.yaml", "config.json"):
        assert (killed / file).read_bytes() == (whole / file).read_bytes(), file
    assert not killed.with_name("killed.partial").exists()


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
