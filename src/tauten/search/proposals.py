"""Which recipe of a level table to measure next: estimates propose, measurements decide."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from tauten.core.goal import Goal
from tauten.core.measurement import Measurement
from tauten.search.levels import LevelTable

MOST = 6  # mixes that are measured
NEAR = 1.01  # ratio of sizes at a loss within the goal and at one beyond it, which ends the search
FARTHEST = 6.0  # factor between the losses of a choice and the next
INNERMOST = 0.1  # share of an interval that a choice keeps from its ends


@dataclass(frozen=True)
class Measured:
    """A choice of levels that was measured.

    Attributes:
        chosen: (units,) levels.
        measurement: Of its recipe.
    """

    chosen: Tensor
    measurement: Measurement


class Proposals:
    """Proposes choices of levels for a goal, each in view of what those before came to.

    With a limit on the drop, the smallest model within it is looked for: the drop's upper bound is
    taken to grow with the estimated loss, and the loss at which it meets the limit is enclosed.
    With only a limit on bytes, the choice that loses least within them is.

    Args:
        table: Of the model.
        goal: With a limit on the drop, the size, the memory, or several.
    """

    def __init__(self, table: LevelTable, goal: Goal):
        self._table, self._goal = table, goal

    def next(self, measured: Sequence[Measured]) -> Tensor | None:
        """The next choice: (units,) levels; None when another measurement would gain little.

        Args:
            measured: The levels themselves, and what was proposed so far, in order.
        """
        limit = self._goal.max_drop
        chosen = (
            self._within_size(measured) if limit is None else self._within_drop(measured, limit)
        )
        if chosen is None or any(bool((m.chosen == chosen).all()) for m in measured):
            return None
        return chosen

    def _within_size(self, measured: Sequence[Measured]) -> Tensor | None:
        """Least loss in the bytes that the goal leaves for packed weights."""
        last = measured[-1]  # a file holds more than packed weights, and memory more than a file
        costs = (
            (self._goal.max_size_bytes, last.measurement.size_bytes),
            (self._goal.max_memory_bytes, last.measurement.memory_bytes),
        )
        left = min(limit - cost for limit, cost in costs if limit is not None)
        return self._table.within_size(left + self._table.size(last.chosen))

    def _within_drop(self, measured: Sequence[Measured], limit: float) -> Tensor | None:
        """Fewest bytes at the loss that is likely to come to the limit."""
        points = [(self._table.loss(m.chosen), m) for m in measured]
        good = [p for p in points if p[1].measurement.quality.drop.high <= limit]
        least = min((p[1].measurement.size_bytes for p in good), default=math.inf)
        bad = [p for p in points if p[1].measurement.quality.drop.high > limit]
        bad = [p for p in bad if p[1].measurement.size_bytes < least]  # others are just poor levels
        outer = min(bad, key=_loss_of, default=None)
        within = [p for p in good if outer is None or p[0] < outer[0]]
        if outer is None or not within:
            nearest = max(within, key=_loss_of) if within else min(bad, key=_loss_of)
            return self._table.within_loss(_beyond(nearest, limit))
        inner = max(within, key=_loss_of)
        sizes = [self._table.size(self._table.within_loss(p[0])) for p in (inner, outer)]
        if min(self._table.size(p[1].chosen) for p in good) <= NEAR * sizes[1]:
            return None
        if sizes[0] <= NEAR * sizes[1]:  # what is within is no mix yet, as a level alone takes more
            return self._table.within_loss(inner[0])
        return self._table.within_loss(_between(inner, outer, limit))


Point = tuple[float, Measured]


def _loss_of(point: Point) -> float:
    return point[0]


def _between(inner: Point, outer: Point, limit: float) -> float:
    """The loss where a line through two points meets the limit, not too near to either."""
    drops = [point[1].measurement.quality.drop.high for point in (inner, outer)]
    share = (limit - drops[0]) / (drops[1] - drops[0])
    share = min(max(share, INNERMOST), 1 - INNERMOST)
    return inner[0] ** (1 - share) * outer[0] ** share if inner[0] else outer[0] / FARTHEST


def _beyond(point: Point, limit: float) -> float:
    """The loss where the drop's upper bound meets the limit, if the drop grows in proportion."""
    loss, drop = point[0], point[1].measurement.quality.drop
    margin = drop.high - drop.value
    factor = (limit - margin) / max(drop.value, margin / FARTHEST) if limit > margin else 0.0
    return loss * min(max(factor, 1 / FARTHEST), FARTHEST)


def gained(measured: Measured, gain: float) -> Measured:
    """A mix whose drop is divided by a gain."""
    quality = measured.measurement.quality
    drop = quality.drop
    drop = replace(drop, value=drop.value / gain, low=drop.low / gain, high=drop.high / gain)
    quality = replace(quality, drop=drop)
    return replace(measured, measurement=replace(measured.measurement, quality=quality))


def is_better(one: Measurement, other: Measurement) -> bool:
    """Whether it takes fewer bytes and loses no more."""
    smaller = one.size_bytes < other.size_bytes
    return smaller and one.quality.drop.value <= other.quality.drop.value
