"""Scale and zero of an integer grid."""

from collections.abc import Iterator

import torch
from torch import Tensor

from tauten.formats.integer import center, fits_float16, grid_values, grouped, round_to_grid
from tauten.solvers.columns import GridRounder

NARROWEST = {1: 0.2, 2: 0.3, 3: 0.5}  # fewer levels want narrower spans; 0.7 from 4 bits on
SHRINK_STEP = 0.05
REGRESSIONS = {"none": 1, "integer": 1, "float": 4}  # more gain next to nothing

# Scale (out, groups), and zero as `IntegerWeight.encode` takes it.
Grid = tuple[Tensor, Tensor | None]


def fit_grid(
    matrix: Tensor,
    bits: int,
    group_size: int,
    zero: str,
    clip: str,
    importance: Tensor | None = None,
) -> Grid:
    """Choose the scale and zero of each group of columns.

    Args:
        matrix: (out, in) floating.
        bits: 1 to 8.
        group_size: Columns a group; 0 for the whole row.
        zero: `none` (symmetric; with `mse` a scale may be negative), `integer` (zero is a code)
            or `float` (zero is any value, as in GGUF's Q4_1).
        clip: `minmax` spans every value; `mse` also tries narrower spans, then least squares for
            the codes of the best, and keeps what has the least squared error in each group.
        importance: (in,) or (out, in) weight of each squared error; None for equal ones.
    Returns:
        scale (out, groups), and the zero as `IntegerWeight.encode` takes it.
    """
    size = min(group_size or matrix.shape[1], matrix.shape[1])
    cells = _edge_padded(matrix.float(), size)  # (out, groups, size)
    low, high = cells.amin(-1), cells.amax(-1)
    middle = cells.mean(-1) if zero == "float" else torch.zeros_like(low)
    best = _span(low, high, bits, zero)
    if clip == "minmax":
        return best
    error = _squared_error(matrix, bits, group_size, *best, importance)
    for rival in _narrower_spans(low, high, middle, bits, zero):
        rival_error = _squared_error(matrix, bits, group_size, *rival, importance)
        best, error = better_grid(best, error, rival, rival_error)
    for _ in range(REGRESSIONS[zero]):
        codes = round_to_grid(matrix, bits, group_size, *best)
        rival = regress_grid(matrix, codes, bits, size, *best, importance)
        rival_error = _squared_error(matrix, bits, group_size, *rival, importance)
        best, error = better_grid(best, error, rival, rival_error)
    return best


def regress_grid(
    matrix: Tensor,
    codes: Tensor,
    bits: int,
    size: int,
    scale: Tensor,
    zero: Tensor | None,
    importance: Tensor | None = None,
) -> Grid:
    """Scale, and floating offset, of each group with the least squared error for given codes.

    Args:
        matrix: (out, in) floating.
        codes: (out, in) uint8.
        bits: Of a code.
        size: Columns a group.
        scale: (out, groups), as is `zero`: the grid that the codes were chosen on. Stays where
            no scale of its sign serves; an integer zero stays always.
        zero: As `IntegerWeight.encode` takes it.
        importance: (in,) or (out, in) weight of each squared error; None for equal ones.
    """
    free = zero is not None and zero.is_floating_point()
    weight = (
        torch.ones(1, matrix.shape[1], dtype=torch.float32)
        if importance is None
        else torch.atleast_2d(importance)
    )
    weight, cells = grouped(weight, size), grouped(matrix.float(), size)
    from_zero = torch.zeros_like(scale) if free else zero
    values = grid_values(codes.float(), bits, size, torch.ones_like(scale), from_zero)
    steps, total = grouped(values, size), weight.sum(-1)
    total = torch.where(total > 0, total, 1.0)
    middle = (weight * steps).sum(-1) / total if free else torch.zeros_like(steps[..., 0])
    steps = steps - middle[..., None]
    power = (weight * steps.square()).sum(-1)
    slope = (weight * steps * cells).sum(-1) / torch.where(power > 0, power, 1.0)
    kept = slope * scale.float() > 0  # a scale keeps its sign
    slope = torch.where(kept, slope, scale.float()).to(scale.dtype)
    if zero is not None and free:
        zero = ((weight * cells).sum(-1) / total - slope.float() * middle).to(zero.dtype)
    return slope, zero


def better_grid(best: Grid, error: Tensor, rival: Grid, rival_error: Tensor) -> tuple[Grid, Tensor]:
    """Of each group the grid with less error, and its error.

    Args:
        best: A grid.
        error: Of it, (out, groups), or (out, 1) to choose by rows.
        rival: Another grid.
        rival_error: Of that.
    """
    wins = rival_error < error
    scale, zero = torch.where(wins, rival[0], best[0]), best[1]
    if zero is not None and rival[1] is not None:
        zero = torch.where(wins, rival[1], zero)
    return (scale, zero), torch.where(wins, rival_error, error)


def column_rounder(scale: Tensor, zero: Tensor | None, bits: int, size: int) -> GridRounder:
    """From a column's values (out,) and its index to the nearest levels of its group.

    Args:
        scale: (out, groups), and zero as `fit_grid` returns them.
        bits: 1 to 8.
        size: Columns a group.
    """
    step = scale.float()
    if zero is None:
        low = -center(bits) * step
    else:
        low = zero.float() if zero.is_floating_point() else -zero.float() * step
    return GridRounder(step, low, 2**bits - 1, size)


def nearest_values(
    matrix: Tensor, bits: int, group_size: int, scale: Tensor, zero: Tensor | None
) -> Tensor:
    """The levels of a grid nearest to a matrix: (out, in) floating -> (out, in) float32."""
    codes = round_to_grid(matrix, bits, group_size, scale, zero)
    return grid_values(codes.float(), bits, group_size or matrix.shape[1], scale, zero)


def storable(scale: Tensor) -> Tensor:
    """Round to float16 where its range keeps every scale, else leave in float32."""
    return scale.half() if bool(fits_float16(scale).all()) else scale


def _span(low: Tensor, high: Tensor, bits: int, zero: str) -> tuple[Tensor, Tensor | None]:
    """Grid from the smallest and largest value of each group, rounded as it will be stored."""
    top = 2**bits - 1
    if zero == "none":
        reach = torch.maximum(-low, high)
        # The largest magnitude of either sign lands on a level; 1 bit has just the levels +-0.5.
        return _positive(reach / max(top / 2 - 0.5, 0.5)), None
    if zero == "float":
        scale, offset = _positive((high - low) / top), low
        if scale.dtype is torch.float16:
            # Beside the scale of a group with a span, the error of a tiny offset is nothing.
            tiny = (high > low) & (offset.abs() < torch.finfo(torch.float16).tiny)
            offset = offset.half() if bool((tiny | fits_float16(offset)).all()) else offset
        return (scale, offset) if offset.dtype is scale.dtype else (scale.float(), offset.float())
    low, high = low.clamp(max=0), high.clamp(min=0)  # 0 must be a level
    scale = _positive((high - low) / top)
    return scale, (-low / scale.float()).round().clamp(0, top).to(torch.uint8)


def _narrower_spans(
    low: Tensor, high: Tensor, middle: Tensor, bits: int, zero: str
) -> Iterator[Grid]:
    """Grids of narrower spans than the whole, and on a symmetric grid of either sign."""
    steps = round((1 - NARROWEST.get(bits, 0.7)) / SHRINK_STEP)
    for step in range(steps + 1):
        shrink = 1 - SHRINK_STEP * step
        if step:
            ends = torch.lerp(middle, low, shrink), torch.lerp(middle, high, shrink)
            yield _span(*ends, bits, zero)
        if zero == "none" and bits > 1:
            # There is one level more below 0: a scale of the other sign turns it to the far side.
            far = torch.where(-low > high, low, high) * (-shrink / center(bits))
            yield storable(torch.where(far == 0, 1.0, far)), None


def _positive(scale: Tensor) -> Tensor:
    return storable(torch.where(scale > 0, scale, torch.ones_like(scale)))


def _squared_error(
    matrix: Tensor,
    bits: int,
    group_size: int,
    scale: Tensor,
    zero: Tensor | None,
    importance: Tensor | None,
) -> Tensor:
    """(out, groups) squared error of rounding to a grid."""
    size = group_size or matrix.shape[1]
    error = matrix.float() - nearest_values(matrix, bits, group_size, scale, zero)
    squares = error.square() if importance is None else error.square() * importance
    return grouped(squares, size).sum(-1)


def _edge_padded(matrix: Tensor, size: int) -> Tensor:
    """Groups of columns, the last one filled with its own last value so the span is unchanged."""
    missing = -matrix.shape[1] % size
    if missing:
        matrix = torch.cat([matrix, matrix[:, -1:].expand(-1, missing)], dim=1)
    cells: Tensor = matrix.unflatten(1, (-1, size))
    return cells
