"""Whatever stands in a description, what leaves is an error of ours or the same result."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from mutations import as_json, mutated
from tiny_models import tiny_llama
from torch import nn

import tauten
from tauten.core.errors import InputError, TautenError
from tauten.core.journal import Journal
from tauten.core.recipe import Recipe
from tauten.models.artifact import read_manifest, read_timing
from tauten.models.packing import install_empty
from tauten.models.source import open_source
from tauten.parallel.plan import Layout, Option, Plan
from tauten.report.html import render_html
from tauten.search.run import run_recipe
from tauten.search.techniques import TECHNIQUES

SEEDS = range(60)


def linear() -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 48), nn.ReLU(), nn.Linear(48, 32))
    return model, torch.randn(4, 32)


def convolutions() -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    layers = nn.Conv2d(4, 8, 3, 2, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding="same")
    return nn.Sequential(*layers), torch.randn(2, 4, 9, 9)


def table() -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(40, 32), nn.Linear(32, 8)), torch.arange(40)


CASES: dict[str, tuple[Callable[[], tuple[nn.Module, torch.Tensor]], Any]] = {
    "integer": (linear, tauten.RTN(4, 16)),
    "superblock": (linear, tauten.KQuant(4, 16, 32)),
    "codebook": (linear, tauten.Codebook(3)),
    "sum": (linear, tauten.Binary(16, residual=True)),
    "ternary": (linear, tauten.Ternary(16)),
    "floats": (linear, tauten.PruneMagnitude(0.5)),
    "2:4": (convolutions, tauten.PruneSparseGPT(0.5, "2:4", bits=4)),
    "rows": (linear, tauten.ShareRows(share=0.5)),
    "images": (convolutions, tauten.Int8()),
    "table": (table, tauten.RTN(3, 0)),
}


@pytest.mark.parametrize("case", CASES)
def test_a_manifest(case: str, tmp_path: Path) -> None:
    make, technique = CASES[case]
    model, example = make()
    run_recipe(open_source(model), Recipe.of(technique), render_html, tmp_path / "out")
    file = tmp_path / "out/tauten.json"
    manifest = {k: v for k, v in json.loads(file.read_text()).items() if k not in NOT_DIGESTS}
    expected = tauten.load(tmp_path / "out", model=model)(example)
    refused = 0
    for seed in SEEDS:
        file.write_bytes(as_json(mutated(manifest, seed)))
        try:
            loaded = tauten.load(tmp_path / "out", model=model)
            render_html(read_manifest(tmp_path / "out"), {})
        except InputError as error:
            refused += 1
            assert "\n" not in str(error), seed
        else:
            assert torch.equal(loaded(example), expected), seed
    assert refused > len(SEEDS) // 3


NOT_DIGESTS = ("files", "sha256")  # without them a manifest is one of an earlier version


def test_a_timing(tmp_path: Path) -> None:
    side = {"median_s": 0.1, "spread_s": 0.01, "prefill_s": None, "tokens_per_s": 3.5}
    revert = {"layer": "a", "format": "b", "instead": "c", "packed_s": 0.1, "unpacked_s": 0.2}
    timing = {
        "unit": "token",
        "original": side,
        "chosen": side,
        "given_up": side,
        "seconds": 3.1,
        "machine": {"cpu": "x", "threads": 2},
        "formats": [revert],
        "trials": [{}],
        "more": {"effort": "thorough", "gain": 0.1, "time_s": 3.0},
    }
    tauten.quantize(linear()[0], 4, out=tmp_path / "out")
    for seed in range(300):
        (tmp_path / "out/timing.json").write_bytes(as_json(mutated(timing, seed)))
        try:
            render_html(read_manifest(tmp_path / "out"), read_timing(tmp_path / "out"))
        except InputError as error:
            assert "timing.json" in str(error), seed


def test_a_recipe() -> None:
    text = """
tauten: 1
entropy_coding: true
split: {seed: 3, max_tokens: 800}
steps:
- {technique: prune_depth, fraction: 0.2}
- {technique: gptq, bits: 4, group_size: 32, damping: 0.01, layers: {a.b: {bits: 3}}}
- {technique: static_int8, where: 'b.*', percentile: 99.9, fold: true}
- {technique: distill, loss: kl, max_time_s: 3}
"""
    tree = yaml.safe_load(text)
    for seed in range(500):
        odd = mutated(tree, seed)
        for read in (
            lambda odd=odd: Recipe.from_dict(odd, TECHNIQUES),
            lambda odd=odd: Recipe.from_yaml(json.dumps(odd), TECHNIQUES),
        ):
            try:
                recipe = read()
            except InputError as error:
                assert "\n" not in str(error), seed
            else:
                assert Recipe.from_dict(recipe.to_dict(), TECHNIQUES) == recipe, seed


@pytest.mark.parametrize(
    "text",
    [
        "a: &x [1]\nsteps: *x",
        "x: &x [1, 1]\ny: &y [*x, *x]\nsteps: [*y, *y]",
        "steps: !!python/object/apply:os.getpid []",
        "steps: []\nsteps: []",
        "steps: " + "[" * 100_000,
        "steps: [" + "{}, " * 5_000_000 + "]",
        "steps: [{technique: rtn, bits: " + "9" * 10_000 + "}]",
        "steps: []\napart: .nan",
        "steps: []\n1: 2",
    ],
    ids=lambda text: text[:30],
)
def test_yaml_that_makes_more_of_itself_is_refused(text: str) -> None:
    with pytest.raises(InputError):
        Recipe.from_yaml(text, TECHNIQUES)


def test_a_plan(tmp_path: Path) -> None:
    layout = Layout(data=2, threads=3)
    options = (Option(layout, 0.5, 100, 0.4, 0.0), Option(Layout(), 1.0, 200, refusal="no"))
    facts = {"machine": {"cores": 2}}
    inputs = {"args": [{"shape": [8, 10], "dtype": "float32"}], "kwargs": {}}
    plan = Plan("m", "latency", 8, inputs, layout, (1, 2), None, options, "because", facts)
    plan.save(tmp_path / "plan.json")
    tree = json.loads((tmp_path / "plan.json").read_text())
    for seed in range(500):
        (tmp_path / "plan.json").write_bytes(as_json(mutated(tree, seed)))
        try:
            read = Plan.read(tmp_path / "plan.json")
        except InputError as error:
            assert "plan.json" in str(error) and "\n" not in str(error), seed
        else:
            read.save(tmp_path / "again.json")
            assert Plan.read(tmp_path / "again.json") == read, seed
            assert read.layout.workers > 0, seed


def journal_entries(folder: Path) -> list[dict[str, Any]]:
    """Those of a run that was killed before its end."""
    tauten.quantize(linear()[0], 4, out=folder / "whole")
    record = read_manifest(folder / "whole")["layers"][0]
    digest = "0" * 64
    drop = {"value": 0.1, "low": 0.0, "high": float("inf"), "examples": 3}
    quality = {"metric": "m", "value": 1.0, "original": 1.1, "drop": drop, "split": "test"}
    measured = {"quality": quality, "size_bytes": 3, "memory_bytes": 4, "kl": float("nan")}
    cell = {"size_bytes": 3, "loss": 0.1, "error": 0.2}
    return [
        {"event": "block", "trial": "a", "part": "b", "sha256": digest, "layers": [record]},
        {"event": "trial", "trial": "a", "recipe": {}, "verdict": "", "error": ""}
        | {"measurement": measured},
        {"event": "levels", "layer": "a", "levels": ["x"], "whole": 3, "known": True}
        | {"cells": [cell]},
        {"event": "scores", "of": "a", "total": [1.0, 2.0], "weight": [1.0, 1.0]},
        {"event": "trusted", "unit": "", "ruined": float("inf")},
        {"event": "zeros", "of": "a", "recipe": {"steps": []}},
        {"event": "group", "of": "a", "layers": ["b"], "kl": 0.1},
        {"event": "task", "id": "0", "sha256": digest, "input": digest},
    ]


def test_a_journal(tmp_path: Path) -> None:
    run = {"source": "x", "seed": 0, "goal": {"max_drop": 0.01}}
    entries = journal_entries(tmp_path)
    whole = Journal(tmp_path / "journal", run)
    for entry in entries:
        whole.add(**entry)
    assert len(Journal(tmp_path / "journal", run).entries) == 1 + len(entries)
    for seed in range(400):
        number = random.Random(seed).randrange(len(entries))
        odd = mutated(entries[number], seed)
        (tmp_path / "odd").unlink(missing_ok=True)
        journal = Journal(tmp_path / "odd", run)
        if not isinstance(odd, dict) or "event" not in odd:
            continue
        journal.add(**odd)
        try:
            read = Journal(tmp_path / "odd", run).find(entries[number]["event"])
        except TautenError as error:
            assert "odd:2" in str(error) and "\n" not in str(error), seed
        else:
            known = read is None or read.keys() == entries[number].keys()
            assert known or odd.keys() != entries[number].keys(), seed


@pytest.mark.filterwarnings("ignore")  # transformers' own, of odd settings
def test_a_configuration(tmp_path: Path) -> None:
    tiny_llama().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for seed in range(80):
        (tmp_path / "config.json").write_bytes(as_json(mutated(config, seed)))
        try:
            model = open_source(tmp_path).open()
        except InputError as error:
            assert "\n" not in str(error), seed
        else:
            assert isinstance(model, nn.Module), seed


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_hidden_layers", 10_000_000),
        ("num_hidden_layers", 2**63),
        ("hidden_size", 2**40),
        ("hidden_size", 128),
        ("intermediate_size", 2**62),
        ("vocab_size", [256]),
        ("vocab_size", 10**9),
        ("architectures", {"a": 1}),
        ("quantization_config", 3),
    ],
    ids=str,
)
def test_a_configuration_of_another_model_is_refused_in_words(
    tmp_path: Path, key: str, value: Any
) -> None:
    tiny_llama().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, key: value}))
    with pytest.raises(InputError, match=r"safetensors|config\.json|tmp"):
        open_source(tmp_path).open()


@pytest.mark.parametrize("layer", [{}, [], None, 3, "Linear"])
def test_a_layer_of_no_kind_is_refused(layer: Any) -> None:
    model, _ = linear()
    with pytest.raises(InputError, match=r"packed layer '0'.*layer"):
        install_empty(model, {"0": {"layer": layer}})
