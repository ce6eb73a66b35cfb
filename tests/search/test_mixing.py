"""Mixing measures the levels that serve a goal, and tunes mixes as long as that gains."""

import itertools
import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from tauten.core.effort import NORMAL, QUICK, THOROUGH, Effort
from tauten.core.goal import Goal
from tauten.core.measurement import Drop, Measurement, Quality, Trial
from tauten.core.recipe import Recipe
from tauten.quantization import GPTQ, TuneScales
from tauten.search import mixing
from tauten.search import trials as trials_module
from tauten.search.levels import LevelTable
from tauten.search.mixing import REFINED, Mixing
from tauten.search.trials import Trials
from tauten.search.work import Work

BITS = (8, 6, 5, 4, 3, 2, 1)
LEVELS = [replace(Recipe.of(GPTQ(bits)), apart=True) for bits in BITS]
LOSSES = (0.0005, 0.003, 0.012, 0.05, 0.2, 0.9, 3.0)


def whole_table(units: int = 20) -> LevelTable:
    """Units of one size and very different sensitivity; levels lose `LOSSES` in all."""
    share = torch.linspace(-2, 2, units).double().exp()
    losses = (share / share.sum())[:, None] * torch.tensor(LOSSES).double()
    sizes = torch.tensor(BITS).expand(units, -1) * 1000
    names = tuple((f"layer{i}",) for i in range(units))
    return LevelTable(names, tuple(LEVELS), sizes.contiguous(), losses)


class Simulated(Trials):
    """Recipes lose what the whole table says; refining takes off a share of it."""

    def __init__(self, goal: Goal, tuning_gain: float = 0.0, sequence_gain: float = 0.0):
        workspace: Any = SimpleNamespace(
            apply=lambda recipe: recipe,
            structure=None,
            discard=lambda recipe: None,
            journal=SimpleNamespace(find=lambda *_, **__: None),
        )
        workspace.source = SimpleNamespace(reader=None)
        work = Work(10**8, tokens=8192, calibration_tokens=8192)
        super().__init__(workspace, SimpleNamespace(), goal, work, mixes=True)  # type: ignore[arg-type]
        self.table = whole_table()
        self.tuning_gain, self.sequence_gain = tuning_gain, sequence_gain

    def measure(self, recipe: Recipe, parents: Any = None) -> Trial:
        levels = []
        for names in self.table.units:
            found = recipe.step_for(names[0])
            assert found is not None
            levels.append(BITS.index(found[1].technique.bits))  # type: ignore[attr-defined]
        chosen = torch.tensor(levels)
        gain = self.tuning_gain * bool(recipe.tunings) + self.sequence_gain * (not recipe.apart)
        loss = self.table.loss(chosen) * (1 - gain)
        value = math.expm1(loss)
        quality = Quality(
            "perplexity", 1 + value, 1.0, Drop(value, value, value, 50), "development"
        )
        size = self.table.size(chosen)
        return Trial(recipe, Measurement(quality, size, size, kl=loss))


def mixed(
    trials: Simulated, monkeypatch: pytest.MonkeyPatch, tunes: bool, effort: Effort = THOROUGH
) -> Mixing:
    def tried_table(*given: Any) -> LevelTable:
        recipes = given[4]  # those that were applied
        at = [LEVELS.index(recipe) for recipe in recipes]
        whole = trials.table
        return LevelTable(whole.units, tuple(recipes), whole.size_bytes[:, at], whole.losses[:, at])

    monkeypatch.setattr(mixing, "level_table", tried_table)
    made = Mixing(trials, nn.Module(), (), tunes, effort)
    made.measure_levels(LEVELS, BITS.index(4))
    return made


def bits_tried(trials: Trials) -> list[int]:
    return [trial.recipe.steps[0].technique.bits for trial in trials.tried]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("goal", "bits"),
    [
        # From 4 bits to two that keep the limit, and to one that loses 3 times as much.
        (Goal(max_drop=0.03), [4, 5, 6, 3]),
        (Goal(max_drop=0.01), [4, 5, 6, 8]),
        (Goal(max_drop=0.1), [4, 5, 3, 2]),
        # To one that fits, and to two that don't.
        (Goal(max_drop=None, max_size_bytes=20 * 2500), [4, 3, 2]),
        (Goal(max_drop=None, max_size_bytes=20 * 3500), [4, 3, 5]),
        (Goal(max_drop=None, max_size_bytes=20 * 5500), [4, 5, 6, 8]),
    ],
)
def test_levels_on_both_sides_of_the_goal_are_measured_and_no_others(
    goal: Goal, bits: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    trials = Simulated(goal)
    mixed(trials, monkeypatch, tunes=False)
    assert bits_tried(trials) == bits


@pytest.mark.parametrize(
    ("goal", "bits"),
    [
        (Goal(max_drop=0.03), [4, 5]),
        (Goal(max_drop=0.01), [4, 5, 6]),
        (Goal(max_drop=0.1), [4, 3]),
    ],
)
def test_less_than_a_thorough_search_takes_one_level_on_either_side(
    goal: Goal, bits: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    trials = Simulated(goal)
    mixed(trials, monkeypatch, tunes=False, effort=NORMAL)
    assert bits_tried(trials) == bits


@pytest.mark.parametrize("limit", [0.01, 0.03, 0.1])
def test_a_search_ends_where_a_trial_promises_too_little_for_its_work(
    limit: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts, sizes, promised = [], [], []
    for effort in (QUICK, NORMAL, THOROUGH):
        trials = Simulated(Goal(max_drop=limit), 0.05, 0.1)
        made = mixed(trials, monkeypatch, tunes=True, effort=effort)
        made.run()
        best = trials.best()
        assert best is not None
        found = trials.tried[best].measurement
        assert found is not None and found.quality.drop.high <= limit
        counts.append(len(trials.tried))
        sizes.append(found.size_bytes)
        promised.append(made.promised)
    assert counts[0] <= counts[1] < counts[2]
    assert sizes[0] >= sizes[1] >= sizes[2]
    assert sizes[1] < 1.15 * sizes[2]
    assert promised[1] > 0 == promised[2], "what was left is told"


def test_what_a_search_leaves_depends_on_no_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another run, and one that goes on after a kill, must come to the same."""
    found = []
    for step in (0.0, 1000.0):
        clock = itertools.count(0.0, step)
        for module in (mixing, trials_module):
            monkeypatch.setattr(module, "monotonic", lambda clock=clock: next(clock))
        trials = Simulated(Goal(max_drop=0.03), 0.05, 0.1)
        mixed(trials, monkeypatch, tunes=True, effort=NORMAL).run()
        found.append([trial.recipe for trial in trials.tried])
    assert found[0] == found[1]


def test_the_mix_comes_near_the_best_over_all_levels(monkeypatch: pytest.MonkeyPatch) -> None:
    trials = Simulated(Goal(max_drop=0.03))
    mixed(trials, monkeypatch, tunes=False).run()
    best = trials.best()
    assert best is not None
    found = trials.tried[best].measurement
    assert found is not None and found.quality.drop.high <= 0.03
    whole = whole_table()
    assert found.size_bytes <= 1.02 * whole.size(whole.within_loss(math.log1p(0.03)))
    assert found.size_bytes < 0.9 * whole.size(torch.full((20,), BITS.index(5)))


@pytest.mark.parametrize(("tuning_gain", "sequence_gain"), [(0.0, 0.0), (0.4, 0.1), (0.1, 0.4)])
def test_what_refining_gains_is_spent_on_fewer_bytes(
    tuning_gain: float, sequence_gain: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    trials = Simulated(Goal(max_drop=0.1), tuning_gain, sequence_gain)
    mixed(trials, monkeypatch, tunes=True).run()
    best = trials.best()
    assert best is not None
    found = trials.tried[best]
    assert found.measurement is not None and found.measurement.quality.drop.high <= 0.1
    refined = [trial for trial in trials.tried if trial.recipe.tunings or not trial.recipe.apart]
    whole, gain = whole_table(), max(tuning_gain, sequence_gain)
    size = whole.size(whole.within_loss(math.log1p(0.1) / (1 - gain)))
    assert found.measurement.size_bytes <= 1.03 * size
    if gain:
        assert bool(found.recipe.tunings) == (tuning_gain > sequence_gain)
        assert found.recipe.apart == (tuning_gain > sequence_gain)
        assert size < 0.95 * whole.size(whole.within_loss(math.log1p(0.1)))
    assert len(refined) <= 2 + REFINED * bool(gain), "what gains nothing is left"


def test_what_training_cannot_serve_is_not_tuned(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for goal, tunes in (
        (Goal(max_drop=None, max_size_bytes=20 * 3500), True),
        (Goal(max_drop=0.1), False),
        (Goal(max_drop=0.03), True),  # loses too little: training would do harm
    ):
        trials = Simulated(goal, 0.5)
        mixed(trials, monkeypatch, tunes).run()
        assert not any(isinstance(t, TuneScales) for r in trials.tried for t in r.recipe.tunings)
        best = trials.best()
        assert best is not None and len(trials.tried[best].recipe.steps) > 1, "a mix is best"
