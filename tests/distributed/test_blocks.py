"""Blocks assigned to workers: the very bytes of one machine, whoever is killed on the way."""

import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import tauten
from tauten.core.recipe import Recipe, Step
from tauten.distributed.cluster import Cluster
from tauten.distributed.crew import dealt_out
from tauten.models.source import open_source
from tauten.report.html import render_html
from tauten.search import blocks
from tauten.search.blocks import can_assign
from tauten.search.run import run_recipe

APART = replace(Recipe.of(tauten.GPTQ(4, 32)), apart=True)
BLIND = Recipe.of(tauten.HQQ(4, 32))


def weights(model: Path, recipe: Recipe, out: Path, texts: list[str], workers: int | None) -> bytes:
    data = texts if recipe.apart else None
    options: dict[str, Any] = {"data": data, "workers": workers}
    run_recipe(open_source(str(model)), recipe, render_html, out, load=False, **options)
    return (out / "model.safetensors").read_bytes()


@pytest.mark.parametrize("recipe", [APART, BLIND], ids=str)
def test_bytes_are_those_of_one_machine(
    recipe: Recipe, tmp_path: Path, llama_folder: Path, texts: list[str]
) -> None:
    alone = weights(llama_folder, recipe, tmp_path / "alone", texts, None)
    assert weights(llama_folder, recipe, tmp_path / "together", texts, 2) == alone


@pytest.mark.parametrize("lost", ["worker", "driver"])
def test_nothing_is_lost_with_a_worker_or_the_driver(
    lost: str,
    tmp_path: Path,
    llama_folder: Path,
    texts: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    alone = weights(llama_folder, BLIND, tmp_path / "alone", texts, None)
    real, given = Cluster.run, []

    def run(self: Cluster, job: Any, payloads: Any, **options: Any) -> Iterator[Any]:
        payloads = list(payloads)
        given.append(len(payloads))
        for number, made in enumerate(real(self, job, payloads, **options)):
            yield made
            if number == 0 and len(given) == 1:
                if lost == "driver":
                    raise KeyboardInterrupt
                os.kill(self.pids[0], signal.SIGKILL)

    monkeypatch.setattr(blocks.Cluster, "run", run)
    out = tmp_path / "together"
    if lost == "driver":
        with pytest.raises(KeyboardInterrupt):
            weights(llama_folder, BLIND, out, texts, 2)
    assert weights(llama_folder, BLIND, out, texts, 2) == alone
    if lost == "driver":
        assert given[1] == given[0] - 1, "what had come in isn't given out again"


def test_what_hangs_on_other_blocks_is_not_assigned(llama_folder: Path) -> None:
    model = open_source(str(llama_folder)).skeleton()
    assert can_assign(APART, model) and can_assign(BLIND, model)
    assert not can_assign(Recipe.of(tauten.GPTQ(4, 32)), model), "calibrated in sequence"
    assert not can_assign(Recipe.of(tauten.PruneMagnitude(0.5)), model), "zeros are shared out"
    assert not can_assign(Recipe((Step(tauten.TuneScales()),)), model)


def test_shares_are_even_and_none_is_empty() -> None:
    parts = "abcdefg"
    dealt = [list(parts[at.start : at.stop]) for at in dealt_out(len(parts), 3)]
    assert dealt == [["a", "b"], ["c", "d"], ["e", "f", "g"]]
    assert [parts[at.start : at.stop] for at in dealt_out(2, 2)] == ["a", "b"]


def test_compress_takes_workers(tmp_path: Path, llama_folder: Path) -> None:
    for workers in (None, 2):
        tauten.compress(str(llama_folder), out=tmp_path / str(workers), workers=workers)
    one, two = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("None", "2"))
    assert one == two
