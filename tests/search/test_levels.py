"""The level table: its estimates hold, its choices are the best there are, and mixes are exact."""

import itertools
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from safetensors.torch import load_file
from scipy import stats
from tiny_models import tiny_llama

from tauten.core.journal import Journal
from tauten.core.recipe import Recipe, Step
from tauten.models.calibration import CalibrationBatch
from tauten.models.source import open_source, shared_copy
from tauten.models.structure import find_structure
from tauten.quantization import AWQ, GPTQ, RTN, Int8, KQuant, TuneScales
from tauten.search import levels
from tauten.search.candidate import Candidate
from tauten.search.levels import LevelTable, level_table
from tauten.search.workspace import Workspace

LEVELS = tuple(
    replace(Recipe.of(technique), apart=True)
    for technique in (Int8(), KQuant(5), RTN(4, 32), GPTQ(3, 32))
)


def batches(seed: int) -> list[CalibrationBatch]:
    ids = torch.randint(0, 128, (16, 24), generator=torch.Generator().manual_seed(seed))
    return [CalibrationBatch((), {"input_ids": ids}, torch.ones_like(ids, dtype=torch.bool))]


SEEN, HELD_OUT = batches(0), batches(1)


class Tried(NamedTuple):
    """A model with its levels applied."""

    model: torch.nn.Module
    workspace: Workspace
    candidates: list[Candidate]
    kls: list[float]

    def table(self, journal: Journal, kls: list[float | None]) -> LevelTable:
        structure = find_structure(self.model)
        return level_table(self.model, structure, None, HELD_OUT, self.candidates, kls, journal)


@pytest.fixture(scope="module")
def tried(tmp_path_factory: pytest.TempPathFactory) -> Tried:
    model = tiny_llama()
    structure = find_structure(model)
    folder = tmp_path_factory.mktemp("run")
    workspace = Workspace(folder, open_source(model), structure, {}, SEEN)
    candidates = [workspace.apply(recipe) for recipe in LEVELS]
    kls = [divergence(model, candidate.source.open()) for candidate in candidates]
    return Tried(model, workspace, candidates, kls)


@pytest.fixture(scope="module")
def table(tried: Tried) -> LevelTable:
    return tried.table(tried.workspace.journal, [None] * len(LEVELS))


@torch.no_grad()
def divergence(model: torch.nn.Module, changed: torch.nn.Module) -> float:
    """KL(original || changed), the mean of all tokens."""
    ids = HELD_OUT[0].kwargs["input_ids"]
    expected = model(input_ids=ids).logits.double().log_softmax(-1)
    found = changed(input_ids=ids).logits.double().log_softmax(-1)
    return float((expected.exp() * (expected - found)).sum(-1).mean())


def true_loss(tried: Tried, names: tuple[str, ...], level: int) -> float:
    """What packing some layers alone does."""
    changed, packed = shared_copy(tried.model), tried.candidates[level].source.open()
    for name in names:
        weight = packed.get_submodule(name).packed.dequantize()
        changed.get_submodule(name).weight = torch.nn.Parameter(weight)
    return divergence(tried.model, changed)


def test_estimates_come_near_true_divergences(tried: Tried, table: LevelTable) -> None:
    estimates, divergences = [], []
    for unit, names in enumerate(table.units):
        for level in range(1, len(LEVELS)):  # 8 bits: noise of bfloat16
            estimates.append(float(table.losses[unit, level]))
            divergences.append(true_loss(tried, names, level))
    ratios = torch.tensor(estimates) / torch.tensor(divergences)
    # Errors of tokens count as independent; those of attention add up in part.
    assert float(ratios.min()) > 0.2 and float(ratios.max()) < 1.7
    assert float(ratios.median()) > 0.6
    assert stats.spearmanr(estimates, divergences).statistic > 0.9


def test_levels_as_a_whole_lose_what_was_measured(tried: Tried) -> None:
    corrected = tried.table(tried.workspace.journal, list(tried.kls))
    torch.testing.assert_close(corrected.losses.sum(0), torch.tensor(tried.kls).double())


def test_sizes_are_exact(tried: Tried, table: LevelTable) -> None:
    for level, candidate in enumerate(tried.candidates):
        held = {record.name: record.size_bytes for record in candidate.layers}
        for unit, names in enumerate(table.units):
            assert int(table.size_bytes[unit, level]) == sum(held[name] for name in names)


@pytest.mark.parametrize("tunings", [(), (Step(TuneScales(rate=0.05, steps=2)),)])
def test_a_mix_is_cut_as_its_recipe_makes_it(
    tried: Tried, table: LevelTable, tmp_path: Path, tunings: tuple[Step, ...]
) -> None:
    chosen = torch.arange(len(table.units)) % len(LEVELS)
    recipe = table.recipe(chosen)
    recipe = replace(recipe, steps=(*recipe.steps, *tunings))
    parents = {name: tried.candidates[at] for name, at in table.level_of(chosen).items()}
    cut = tried.workspace.cut(recipe, parents)
    anew = Workspace(
        tmp_path, open_source(tried.model), find_structure(tried.model), {}, SEEN
    ).apply(recipe)
    files = []
    for candidate in (cut, anew):
        file = tmp_path / f"{len(files)}.safetensors"
        candidate.weights.write(file)
        files.append(file)
    first, second = map(load_file, files)
    assert first.keys() == second.keys()
    assert [key for key in first if not torch.equal(first[key], second[key])] == []
    assert files[0].read_bytes() == files[1].read_bytes()
    assert cut.specs == anew.specs
    assert {r.name: r for r in cut.layers} == {r.name: r for r in anew.layers}
    assert cut.memory_bytes == anew.memory_bytes


@pytest.mark.parametrize("coding", [False, True])
def test_a_cut_mix_computes_with_the_layers_that_it_was_cut_from(
    tried: Tried, table: LevelTable, coding: bool
) -> None:
    chosen = torch.arange(len(table.units)).flip(0) % len(LEVELS)
    recipe = replace(table.recipe(chosen), entropy_coding=coding)
    level_of = table.level_of(chosen)
    made = tried.workspace.cut(recipe, {n: tried.candidates[at] for n, at in level_of.items()})
    opened = made.source.open()
    sources = [candidate.source.open() for candidate in tried.candidates]
    for name, level in level_of.items():
        expected = sources[level].get_submodule(name).packed.dequantize()
        assert torch.equal(opened.get_submodule(name).packed.dequantize(), expected), name


def few_units(table: LevelTable) -> tuple[LevelTable, list[torch.Tensor]]:
    """Four units of a table, and all choices of their levels."""
    some = LevelTable(table.units[:4], table.levels, table.size_bytes[:4], table.losses[:4].clone())
    choices = itertools.product(range(len(LEVELS)), repeat=4)
    return some, [torch.tensor(choice) for choice in choices]


@pytest.mark.parametrize("share", [0.5, 0.6, 0.8, 1.0])
def test_a_size_is_kept_and_used_best(table: LevelTable, share: float) -> None:
    some, choices = few_units(table)
    budget = int(share * some.size_bytes.amax(1).sum())
    best = min(some.loss(c) for c in choices if some.size(c) <= budget)
    chosen = some.within_size(budget)
    assert some.size(chosen) <= budget
    assert some.loss(chosen) <= 1.1 * best + 1e-12


@pytest.mark.parametrize("share", [0.001, 0.03, 0.3, 2.0])
def test_a_loss_is_kept_with_fewest_bytes(table: LevelTable, share: float) -> None:
    some, choices = few_units(table)
    limit = max(share * float(some.losses.amax(1).sum()), 1.001 * float(some.losses.amin(1).sum()))
    best = min(some.size(c) for c in choices if some.loss(c) <= limit)
    chosen = some.within_loss(limit)
    assert some.loss(chosen) <= limit
    assert some.size(chosen) <= 1.03 * best


def test_limits_that_nothing_keeps_get_what_comes_nearest(table: LevelTable) -> None:
    assert table.size(table.within_size(10)) == int(table.size_bytes.amin(1).sum())
    least = float(table.losses.amin(1).sum())
    assert table.loss(table.within_loss(least / 100)) == pytest.approx(least, rel=1e-4)


def test_a_recipe_gives_each_layer_its_level(table: LevelTable) -> None:
    chosen = torch.arange(len(table.units)) % len(LEVELS)
    recipe = table.recipe(chosen)
    for names, level in zip(table.units, chosen.tolist(), strict=True):
        for name in names:
            found = recipe.step_for(name)
            assert found is not None and found[1].technique == LEVELS[level].steps[0].technique
    alike = table.recipe(torch.zeros(len(table.units), dtype=torch.long))
    assert [step.where for step in alike.steps] == ["*"]


def test_rows_in_the_journal_are_not_computed_again(
    tried: Tried, table: LevelTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(levels, "sensitivities", None)
    again = tried.table(tried.workspace.journal, [None] * len(LEVELS))
    assert torch.equal(table.losses, again.losses)
    assert torch.equal(table.size_bytes, again.size_bytes)


def test_only_layers_packed_by_themselves_can_be_mixed() -> None:
    assert all(level.is_level for level in LEVELS)
    assert Recipe((Step(RTN(4), "a.*"), Step(Int8()))).is_level
    assert not Recipe.of(GPTQ(4)).is_level, "it hangs on the blocks before"
    assert not Recipe(()).is_level
    assert not replace(Recipe.of(AWQ(4)), apart=True).is_level  # scales one layer against another
    for correction in (0.5, "auto"):  # makes up for layers before it
        assert not replace(Recipe.of(GPTQ(4, correction=correction)), apart=True).is_level


def test_where_nothing_is_lost_the_smallest_levels_are_taken() -> None:
    sizes = torch.tensor([[8, 4], [6, 7]])
    lossless = torch.zeros(2, 2, dtype=torch.float64)
    table = LevelTable((("a",), ("b",)), LEVELS[:2], sizes, lossless)
    assert table.within_loss(0.0).tolist() == [1, 0]
    some = replace(table, losses=torch.tensor([[0.0, 0.1], [0.0, 0.0]], dtype=torch.float64))
    assert some.within_loss(0.0).tolist() == [0, 0]
