"""Smaller architectures, healed and then packed: bits, depth and width in one recipe."""

from dataclasses import replace

from torch import nn

from tauten.core.goal import Goal
from tauten.core.measurement import Measurement
from tauten.core.progress import track
from tauten.search.ladder import kind_of, smaller_recipes
from tauten.search.trials import Trials

MOST = 3  # recipes that are tried
BYTES = ("max_size_bytes", "max_memory_bytes")


def combine(trials: Trials, skeleton: nn.Module) -> None:
    """Pack smaller architectures at the boldest level that keeps the goal, while they keep it too.

    A language model must be healed for a long time to lose as little as packing alone does: there
    they are for limits on bytes that no level keeps.

    Args:
        trials: Have tried levels.
        skeleton: Of the original.
    """
    measured = [(t.measurement, t.recipe) for t in trials.tried if t.measurement is not None]
    levels = [(found, recipe) for found, recipe in measured if recipe.is_level]
    too_large = all(_is_too_large(found, trials.goal) for found, _ in measured)
    structure = trials.workspace.structure
    if not levels or (kind_of(skeleton, structure) == "decoder" and not too_large):
        return
    kept = [item for item in levels if not trials.verdict(item[0])]
    _, level = min(kept or levels, key=lambda item: item[0].size_bytes)
    recipes = smaller_recipes(skeleton, structure, level.steps[0].technique)[:MOST]
    for recipe in track(recipes, "packing smaller architectures", len(recipes)):
        if trials.time_is_up():
            return
        trial = trials.add(replace(recipe, entropy_coding=level.entropy_coding))
        found = trial.measurement
        if found is None or (trials.verdict(found) and not _is_too_large(found, trials.goal)):
            return


def _is_too_large(measurement: Measurement, goal: Goal) -> bool:
    limits = goal.limits
    return any(measurement.cost(name) > limits[name] for name in BYTES if name in limits)
