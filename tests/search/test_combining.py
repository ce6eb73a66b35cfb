"""Smaller architectures are packed where that may serve the goal, the gentlest first."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from tiny_models import MODELS
from torch import nn

from tauten.core.goal import Goal
from tauten.core.measurement import Drop, Measurement, Quality, Trial
from tauten.core.recipe import Recipe
from tauten.models.structure import find_structure
from tauten.quantization import Int8, KQuant
from tauten.search.combining import combine
from tauten.search.trials import Trials


def measurement(size_bytes: int, high: float) -> Measurement:
    drop = Drop(high, high, high, examples=100)
    quality = Quality("accuracy", 0.9, 0.9, drop, "development")
    return Measurement(quality, size_bytes, size_bytes)


class Scripted(Trials):
    """Trials that come to what is written down for them."""

    def __init__(self, model: nn.Module, goal: Goal, drops: list[float], bold: float = 0.5):
        place = SimpleNamespace(structure=find_structure(model))
        super().__init__(place, SimpleNamespace(), goal, True)  # type: ignore[arg-type]
        self._drops = iter(drops)
        levels = (Int8(), 100, 0.0), (KQuant(4), 50, 0.005), (KQuant(2), 25, bold)
        for technique, size, high in levels:
            recipe = replace(Recipe.of(technique), apart=True)
            self.tried.append(Trial(recipe, measurement(size, high)))

    def add(self, recipe: Recipe, *_: Any) -> Trial:
        trial = Trial(recipe, measurement(20, next(self._drops)))
        self.tried.append(trial)
        return trial

    @property
    def added(self) -> list[Recipe]:
        return [trial.recipe for trial in self.tried[3:]]


def steps(recipe: Recipe) -> list[str]:
    return [step.technique.name for step in recipe.steps]


def test_the_boldest_level_that_keeps_the_goal_packs_what_is_left() -> None:
    model = MODELS["cnn"][0]()
    trials = Scripted(model, Goal(max_drop=0.01), [0.005, 0.005])
    combine(trials, model)
    assert [steps(recipe) for recipe in trials.added] == [
        ["prune_channels", "distill", "kquant"],
        ["prune_channels", "distill", "kquant"],
    ]
    assert all(recipe.steps[-1].technique == KQuant(4) for recipe in trials.added)
    fractions = [recipe.steps[0].technique.knobs()["fraction"] for recipe in trials.added]
    assert fractions == sorted(fractions)


def test_a_miss_ends_it() -> None:
    model = MODELS["cnn"][0]()
    trials = Scripted(model, Goal(max_drop=0.01), [0.02])
    combine(trials, model)
    assert len(trials.added) == 1


@pytest.mark.parametrize(("goal", "count"), [(Goal(max_drop=0.01), 0), (None, 3)])
def test_language_models_are_cut_only_where_packing_does_not_reach(
    goal: Goal | None, count: int
) -> None:
    model = MODELS["llama"][0]()
    budget = Goal(max_drop=None, max_size_bytes=10)
    trials = Scripted(model, goal or budget, [0.3, 0.4, 0.5])
    combine(trials, model)
    assert len(trials.added) == count
    assert all(recipe.steps[-1].technique == KQuant(2) for recipe in trials.added)
