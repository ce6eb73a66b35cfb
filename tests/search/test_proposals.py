"""Proposals come near the best choice within a goal in a few measurements."""

import math
from dataclasses import replace

import pytest
import torch

from tauten.core.goal import Goal
from tauten.core.measurement import Drop, Measurement, Quality
from tauten.core.recipe import Recipe
from tauten.quantization import RTN
from tauten.search.levels import LevelTable
from tauten.search.proposals import MOST, Measured, Proposals

OTHER_BYTES = 12_345  # of a file, beside packed weights
MORE_IN_MEMORY = 40_000


def table(units: int = 60) -> LevelTable:
    """Losses fall by 4 a bit, in units of very different sensitivity."""
    generator = torch.Generator().manual_seed(0)
    scale = torch.exp(2 * torch.randn(units, 1, generator=generator).double()) * 1e-3
    weights = torch.randint(1000, 9000, (units, 1), generator=generator)
    bits = torch.tensor([8, 6, 5, 4, 3, 2])
    names = tuple((f"layer{i}",) for i in range(units))
    levels = tuple(Recipe.of(RTN(int(b))) for b in bits)
    return LevelTable(names, levels, weights * bits // 8, scale / 4.0**bits * 256)


def measure(table: LevelTable, chosen: torch.Tensor, factor: float, margin: float) -> Measured:
    """The drop grows faster than the estimate, by a factor that the table doesn't know."""
    value = math.expm1(factor * table.loss(chosen))
    drop = Drop(value, value - margin, value + margin, 50)
    quality = Quality("perplexity", 1 + value, 1.0, drop, "development")
    size = table.size(chosen) + OTHER_BYTES
    return Measured(chosen, Measurement(quality, size, size + MORE_IN_MEMORY))


def proposed(table: LevelTable, goal: Goal, factor: float, margin: float) -> list[Measured]:
    levels = [torch.full((len(table.units),), index) for index in range(len(table.levels))]
    measured = [measure(table, chosen, factor, margin) for chosen in levels]
    for _ in range(MOST):
        chosen = Proposals(table, goal).next(measured)
        if chosen is None:
            break
        measured.append(measure(table, chosen, factor, margin))
    return measured


@pytest.mark.parametrize("factor", [0.1, 0.5, 1.0, 3.0])
@pytest.mark.parametrize("max_drop", [0.01, 0.03, 0.3])
def test_the_smallest_choice_within_a_drop_is_found(factor: float, max_drop: float) -> None:
    some, margin = table(), 0.2 * max_drop
    found = proposed(some, Goal(max_drop=max_drop), factor, margin)
    within = [m for m in found if m.measurement.quality.drop.high <= max_drop]
    best = some.within_loss(math.log1p(max_drop - margin) / factor)
    smallest = min(some.size(m.chosen) for m in within)
    assert smallest <= 1.03 * some.size(best)


def test_a_poor_level_beyond_the_limit_does_not_end_the_search() -> None:
    """Int8 may lose as much as 6 bits, and be just beyond the limit by chance."""
    some, goal, margin = table(), Goal(max_drop=0.03), 0.001
    losses = torch.cat([some.losses[:, 1:2] * 1.001, some.losses[:, 1:]], 1)
    some = LevelTable(some.units, some.levels, some.size_bytes, losses)
    levels = [torch.full((len(some.units),), index) for index in range(len(some.levels))]
    measured = [measure(some, chosen, 1.0, margin) for chosen in levels]
    at = measured[0].measurement
    drop = replace(at.quality.drop, high=1.01 * 0.03)
    measured[0] = Measured(levels[0], replace(at, quality=replace(at.quality, drop=drop)))
    drop = replace(drop, high=0.99 * 0.03)
    at = measured[1].measurement
    measured[1] = Measured(levels[1], replace(at, quality=replace(at.quality, drop=drop)))
    chosen = Proposals(some, goal).next(measured)
    assert chosen is not None and some.size(chosen) < some.size(levels[1])


def test_mixes_that_just_miss_are_followed_by_one_that_does_not() -> None:
    """Where a level is far dearer than the mix that loses as much, the level isn't the answer."""
    some, limit = table(), 0.03
    cheap = some.size_bytes.clone()
    cheap[:, 3] = some.size_bytes[:, 4]  # one level is nearly as small as the next
    some = LevelTable(some.units, some.levels, cheap, some.losses)
    goal, factor = Goal(max_drop=limit), 1.0
    levels = [torch.full((len(some.units),), index) for index in range(len(some.levels))]
    measured = [measure(some, chosen, factor, 0.0) for chosen in levels]
    for _ in range(MOST):
        chosen = Proposals(some, goal).next(measured)
        if chosen is None:
            break
        found = measure(some, chosen, factor, 0.0)
        if len(measured) < len(levels) + 2:  # the first two are just beyond it, by chance
            drop = replace(found.measurement.quality.drop, high=1.02 * limit)
            quality = replace(found.measurement.quality, drop=drop)
            found = Measured(chosen, replace(found.measurement, quality=quality))
        measured.append(found)
    good = [m for m in measured if m.measurement.quality.drop.high <= limit]
    smallest_level = min(some.size(m.chosen) for m in good if m.chosen.unique().numel() == 1)
    assert min(some.size(m.chosen) for m in good) < 0.95 * smallest_level


def test_a_margin_above_the_limit_ends_at_the_gentlest_level() -> None:
    some = table()
    found = proposed(some, Goal(max_drop=0.01), 1.0, 0.02)
    assert min(some.loss(m.chosen) for m in found) == pytest.approx(float(some.losses[:, 0].sum()))


@pytest.mark.parametrize("limit", ["max_size_bytes", "max_memory_bytes"])
@pytest.mark.parametrize("share", [0.3, 0.5, 0.8])
def test_a_size_is_never_exceeded_and_nearly_used(share: float, limit: str) -> None:
    some = table()
    budget = int(share * some.size_bytes[:, 0].sum()) + OTHER_BYTES
    more = MORE_IN_MEMORY if limit == "max_memory_bytes" else 0
    found = proposed(some, Goal(max_drop=None, **{limit: budget + more}), 1.0, 0.0)
    assert len(found) == len(some.levels) + 1  # one mix is enough
    assert budget - 3000 < found[-1].measurement.size_bytes <= budget  # the smallest step
    within = [m for m in found if m.measurement.size_bytes <= budget]
    assert min(within, key=lambda m: some.loss(m.chosen)) is found[-1]
