"""Calibration on several workers: the very bytes that one machine packs."""

import contextlib
import itertools
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import MODELS
from torch import nn

import tauten
from tauten.core.errors import InputError
from tauten.core.recipe import Recipe
from tauten.data.calibration import calibration_batches
from tauten.distributed.calibration import DistributedCalibration, check_distributable
from tauten.distributed.local_engine import LocalEngine
from tauten.models.calibration import Calibration
from tauten.models.input_sums import InputSums, Node, ShardSums, shard_of
from tauten.models.observer import NothingLeft, Observer
from tauten.models.source import shared_copy
from tauten.models.structure import find_structure
from tauten.models.walk import Walk
from tauten.parallel.given import Given

ROWS = torch.randn(40, 6, 16, generator=torch.Generator().manual_seed(0))


def batches(kind: str, model: nn.Module, count: int = 11) -> list[Any]:
    """Of uneven sizes."""
    if kind == "cnn":
        images = [torch.randn(2, 1, 12, 12) for _ in range(count)]
        return calibration_batches(images, model)
    generator = torch.Generator().manual_seed(0)
    ids = [torch.randint(0, 256, (1 + i % 3, 12 + i), generator=generator) for i in range(count)]
    return calibration_batches([{"input_ids": x} for x in ids], model)


def packed(model: nn.Module, recipe: Recipe, calibration: Calibration) -> dict[str, torch.Tensor]:
    copy = shared_copy(model)
    return Walk(copy, find_structure(copy), recipe, calibration=calibration).run().state_dict()


@pytest.fixture
def engine() -> Iterator[LocalEngine]:
    made = LocalEngine(3, 1)
    yield made
    made.close()


def observed(numbers: range, count: int) -> ShardSums:
    """Sums of some of so many batches."""
    layer = nn.Linear(16, 2)
    with Observer({"": layer}, shards=8) as observer:
        for number in numbers:
            observer.shard(shard_of(number, count))
            with observer.batch(None), contextlib.suppress(NothingLeft):
                layer(ROWS[number])
    return observer.sums()


@pytest.mark.parametrize("cuts", [(), (20,), (10, 30), (5, 10, 15, 20, 25, 30, 35)])
def test_sums_of_any_division_into_shards_have_the_same_bits(cuts: tuple[int, ...]) -> None:
    whole = observed(range(40), 40).inputs()[""]
    edges = (0, *cuts, 40)
    parts = [observed(range(a, b), 40).tree() for a, b in itertools.pairwise(edges)]
    joined = ShardSums.of_trees(parts).inputs()[""]
    assert torch.equal(whole.moment, joined.moment)
    assert torch.equal(whole.mean, joined.mean)
    assert torch.equal(whole.sample, joined.sample)
    rows = ROWS.flatten(0, 1)
    assert torch.allclose(joined.moment, rows.t() @ rows / len(rows), atol=1e-6)
    assert torch.equal(joined.peak, rows.abs().amax(0))
    assert joined.tokens == len(rows)


def test_a_tree_of_sums_keeps_few_nodes() -> None:
    """Of eight shards at most three wait to be joined, so memory is bounded."""
    sums = ShardSums()
    for shard in range(8):
        sums.push(Node(shard, 1, {"": InputSums.empty(2)}))
        assert len(sums.nodes) <= 3
    assert [(node.first, node.width) for node in sums.nodes] == [(0, 8)]


@pytest.mark.parametrize(
    ("kind", "technique"),
    [
        ("llama", tauten.GPTQ(4, 32)),
        ("llama", tauten.AWQ(4, 32)),
        ("llama", tauten.SmoothQuant()),
        ("gpt2", tauten.PruneSparseGPT(0.5)),
        ("cnn", tauten.GPTQ(4, 0)),
    ],
    ids=lambda value: str(value),
)
def test_weights_are_packed_as_on_one_machine(
    kind: str, technique: Any, engine: LocalEngine
) -> None:
    model = MODELS[kind][0]()
    calls, recipe = batches(kind, model), Recipe.of(technique)
    alone = packed(model, recipe, Calibration(calls))
    shards = DistributedCalibration(engine, Given(model).packed()[0], calls)
    together = packed(model, recipe, shards)
    assert alone.keys() == together.keys()
    assert all(torch.equal(alone[name], together[name]) for name in alone)


def test_a_worker_killed_while_calibrating_is_replaced(engine: LocalEngine) -> None:
    model = MODELS["llama"][0]()
    calls, recipe = batches("llama", model), Recipe.of(tauten.GPTQ(3, 32))
    shards = DistributedCalibration(engine, Given(model).packed()[0], calls)
    gather = shards.gather

    def killing(part: str, names: Any) -> Any:
        if part.endswith(".1"):
            os.kill(engine.pids[1], signal.SIGKILL)
        return gather(part, names)

    shards.gather = killing  # type: ignore[method-assign]
    together = packed(model, recipe, shards)
    alone = packed(model, recipe, Calibration(calls))
    assert len(shards.crew.lost) == 1
    assert all(torch.equal(alone[name], together[name]) for name in alone)


def test_quantize_takes_workers(tmp_path: Path, llama_folder: Path, texts: list[str]) -> None:
    """From a folder: each worker streams its own copy, and files are the same to the byte."""
    options: dict[str, Any] = {"bits": 4, "technique": "gptq", "data": texts}
    for workers in (None, 2):
        out = tmp_path / str(workers)
        tauten.quantize(str(llama_folder), out=out, workers=workers, **options)
    one, two = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("None", "2"))
    assert one == two


def test_what_needs_all_data_on_one_machine_is_refused() -> None:
    with pytest.raises(InputError, match="autoround needs all calibration data on one machine"):
        check_distributable(Recipe.of(tauten.AutoRound(4)), MODELS["llama"][0]())
