"""Geometry of the Pareto plot: where each trial lies, in pixels of an SVG."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from tauten.core.figures import format_limit, is_number
from tauten.report.trials import TrialRow

_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 18, 16, 46
_PADDING = 0.07  # Free room around the data, as a share of the axis.
_SPAN = 20  # Drops that differ by more than this factor can't be told apart on a linear axis.
_APART = 18  # Centres of marks with numbers in them are at least so far from each other.
_DRAW_ORDER = ("missed", "plain", "within", "nearest", "chosen")


@dataclass(frozen=True)
class Axis:
    """A monotone map from values to pixels.

    Attributes:
        bend: Applied to values first: the identity, or asinh for a drop that spans decades.
    """

    low: float
    high: float
    start: float
    end: float
    bend: Callable[[float], float]

    def place(self, value: float) -> float:
        """Pixel of a value; values outside the axis are drawn at its edge."""
        low, high = self.bend(self.low), self.bend(self.high)
        share = (self.bend(value) - low) / (high - low)
        return round(self.start + min(1.0, max(0.0, share)) * (self.end - self.start), 1)


@dataclass(frozen=True)
class Point:
    """A trial's mark: its centre and the ends of its whisker.

    Attributes:
        numbered: There is room for its number.
    """

    trial: TrialRow
    x: float
    y: float
    y_low: float
    y_high: float
    numbered: bool = True


@dataclass(frozen=True)
class Tick:
    """A labelled place on an axis."""

    at: float
    label: str


@dataclass(frozen=True)
class Plot:
    """All that the template draws.

    Attributes:
        frontier: Points of the polyline through the trials that no other beats.
        max_drop: The goal's limits, None where there is none.
        bent: The drop's axis isn't linear.
        off_chart: Trials whose drop isn't a finite number.
    """

    width: int
    height: int
    left: float
    right: float
    top: float
    bottom: float
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    points: tuple[Point, ...]
    frontier: str
    max_drop: Tick | None
    max_size: Tick | None
    bent: bool
    off_chart: tuple[int, ...]


def pareto_plot(
    rows: Sequence[TrialRow],
    max_drop: float | None,
    max_size_bytes: int | None,
    width: int,
    height: int,
    unit: str = "",
) -> Plot | None:
    """Lay out size against drop, of a unit as `Goal.drop_unit`; None if no trial has both."""
    limit = max_drop
    if not unit:  # shares are drawn in percent
        rows = [_in_percent(row) for row in rows]
        limit = None if max_drop is None else 100 * max_drop
    measured = [row for row in rows if row.size_bytes is not None]
    shown = [row for row in measured if is_number(row.drop)]
    if not shown:
        return None
    x = _size_axis(shown, max_size_bytes, _LEFT, width - _RIGHT)
    y, scale = _drop_axis(shown, limit, height - _BOTTOM, _TOP)
    points = [_point(row, x, y) for row in shown]
    best = sorted((p for p in points if p.trial.frontier), key=lambda p: p.x)
    size_limit = max_size_bytes / 1e6 if max_size_bytes is not None else None
    return Plot(
        width=width,
        height=height,
        left=_LEFT,
        right=width - _RIGHT,
        top=_TOP,
        bottom=height - _BOTTOM,
        x_ticks=_ticks(x, _nice_steps(x.low, x.high, width // 80), ""),
        y_ticks=_ticks(y, _drop_steps(y, scale, height // 60), "" if unit else "%"),
        points=_numbered(sorted(points, key=lambda p: _DRAW_ORDER.index(p.trial.state))),
        frontier=" ".join(f"{p.x},{p.y}" for p in best),
        max_drop=None if limit is None else Tick(y.place(limit), format_limit(max_drop, unit)),
        max_size=None if size_limit is None else Tick(x.place(size_limit), f"{size_limit:.4g} MB"),
        bent=scale is not None,
        off_chart=tuple(row.number for row in measured if not is_number(row.drop)),
    )


def _point(row: TrialRow, x: Axis, y: Axis) -> Point:
    assert row.size_bytes is not None and row.drop is not None
    centre = y.place(row.drop)
    low, high = (y.place(v) if is_number(v) else centre for v in (row.low, row.high))
    return Point(row, x.place(row.size_bytes / 1e6), centre, low, high)


def _in_percent(row: TrialRow) -> TrialRow:
    low, value, high = (None if v is None else 100 * v for v in (row.low, row.drop, row.high))
    return replace(row, low=low, drop=value, high=high)


def _numbered(points: Sequence[Point]) -> tuple[Point, ...]:
    """Numbers where they don't overlap; those drawn last, on top, have the first choice."""
    taken: list[Point] = []
    drawn = []
    for point in reversed(points):
        free = all(math.hypot(point.x - p.x, point.y - p.y) >= _APART for p in taken)
        drawn.append(replace(point, numbered=free))
        taken += [point] if free else []
    return tuple(reversed(drawn))


def _size_axis(rows: Sequence[TrialRow], limit: int | None, start: float, end: float) -> Axis:
    sizes = [row.size_bytes / 1e6 for row in rows if row.size_bytes is not None]
    if limit is not None:
        sizes.append(limit / 1e6)
    low, high = min(sizes), max(sizes)
    margin = _PADDING * ((high - low) or high or 1.0)
    return Axis(max(0.0, low - margin), high + margin, start, end, _same)


def _drop_axis(
    rows: Sequence[TrialRow], limit: float | None, start: float, end: float
) -> tuple[Axis, float | None]:
    """The axis, and where it turns from linear to logarithmic, None if it is linear."""
    drops = [row.drop for row in rows if row.drop is not None]
    bounds = [v for row in rows for v in (row.low, row.high) if is_number(v)]
    limits = [] if limit is None else [limit]
    values = [0.0, *drops, *bounds, *limits]
    sizes = [abs(v) for v in (*drops, *limits) if v]
    scale = None
    if sizes and max(sizes) > _SPAN * min(sizes):
        # Drops far inside the goal are alike to the user: they get no decades of their own.
        floor = limit / 20 if limit else 0.1
        scale = 10.0 ** math.floor(math.log10(max(min(sizes), floor)))
    bend = _asinh_over(scale) if scale else _same
    low, high = bend(min(values)), bend(max(values))
    margin = _PADDING * ((high - low) or 1.0)
    unbend = _sinh_over(scale) if scale else _same
    return Axis(unbend(low - margin), unbend(high + margin), start, end, bend), scale


def _drop_steps(axis: Axis, scale: float | None, count: int) -> list[float]:
    if scale is None:
        return _nice_steps(axis.low, axis.high, count)
    largest = max(abs(axis.low), abs(axis.high))
    decades = [scale * 10.0**k for k in range(1 + max(0, math.floor(math.log10(largest / scale))))]
    steps = [-v for v in reversed(decades)] + [0.0] + decades
    return [v for v in steps if axis.low <= v <= axis.high]


def _nice_steps(low: float, high: float, count: int) -> list[float]:
    """Round values inside an interval, about `count` of them."""
    raw = (high - low) / max(2, count)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * 0.999)
    return [k * step for k in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _ticks(axis: Axis, values: Sequence[float], unit: str) -> tuple[Tick, ...]:
    return tuple(Tick(axis.place(v), f"{float(f'{v:.6g}'):,.6g}{unit}") for v in values)


def _same(value: float) -> float:
    return value


def _asinh_over(scale: float) -> Callable[[float], float]:
    return lambda value: math.asinh(value / scale)


def _sinh_over(scale: float) -> Callable[[float], float]:
    return lambda value: math.sinh(value) * scale
