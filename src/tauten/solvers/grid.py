"""Scale and zero of an integer grid."""

from collections.abc import Iterator

import torch
from torch import Tensor

from tauten.formats.integer import center, grid_values, grouped, round_to_grid

NARROWEST = {1: 0.2, 2: 0.3, 3: 0.5}  # fewer levels want narrower spans; 0.7 from 4 bits on
SHRINK_STEP = 0.05


def fit_grid(
    matrix: Tensor,
    bits: int,
    group_size: int,
    zero: str,
    clip: str,
    importance: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Choose the scale and zero of each group of columns.

    Args:
        matrix: (out, in) floating.
        bits: 1 to 8.
        group_size: Columns a group; 0 for the whole row.
        zero: `none` (symmetric; with `mse` a scale may be negative), `integer` (zero is a code)
            or `float` (zero is any value, as in GGUF's Q4_1).
        clip: `minmax` spans every value; `mse` also tries narrower spans and keeps the one with
            the least squared error in each group.
        importance: (in,) weight of each column's squared error; None for equal ones.
    Returns:
        scale (out, groups), and the zero as `IntegerWeight.encode` takes it.
    """
    size = group_size or matrix.shape[1]
    cells = _edge_padded(matrix.float(), size)  # (out, groups, size)
    low, high = cells.amin(-1), cells.amax(-1)
    best_scale, best_zero = _span(low, high, bits, zero)
    if clip == "minmax":
        return best_scale, best_zero
    best = _squared_error(matrix, bits, group_size, best_scale, best_zero, importance)
    for scale, offset in _narrower_spans(low, high, bits, zero):
        error = _squared_error(matrix, bits, group_size, scale, offset, importance)
        better = error < best
        best = torch.where(better, error, best)
        best_scale = torch.where(better, scale, best_scale)
        if best_zero is not None and offset is not None:
            best_zero = torch.where(better, offset, best_zero)
    return best_scale, best_zero


def storable(scale: Tensor) -> Tensor:
    """Round to float16 where its range keeps every scale, else leave in float32."""
    return scale.half() if bool(_fits(scale).all()) else scale


def _fits(values: Tensor) -> Tensor:
    magnitude, half = values.abs(), torch.finfo(torch.float16)
    return (magnitude <= half.max) & ((magnitude >= half.tiny) | (magnitude == 0))


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
            offset = offset.half() if bool((tiny | _fits(offset)).all()) else offset
        return (scale, offset) if offset.dtype is scale.dtype else (scale.float(), offset.float())
    low, high = low.clamp(max=0), high.clamp(min=0)  # 0 must be a level
    scale = _positive((high - low) / top)
    return scale, (-low / scale.float()).round().clamp(0, top).to(torch.uint8)


def _narrower_spans(
    low: Tensor, high: Tensor, bits: int, zero: str
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Grids of narrower spans than the whole, and on a symmetric grid of either sign."""
    steps = round((1 - NARROWEST.get(bits, 0.7)) / SHRINK_STEP)
    for step in range(steps + 1):
        shrink = 1 - SHRINK_STEP * step
        if step:
            yield _span(low * shrink, high * shrink, bits, zero)
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
    codes = round_to_grid(matrix, bits, group_size, scale, zero)
    error = matrix.float() - grid_values(codes.float(), bits, size, scale, zero)
    squares = error.square() if importance is None else error.square() * importance
    return grouped(squares, size).sum(-1)


def _edge_padded(matrix: Tensor, size: int) -> Tensor:
    """Groups of columns, the last one filled with its own last value so the span is unchanged."""
    missing = -matrix.shape[1] % size
    if missing:
        matrix = torch.cat([matrix, matrix[:, -1:].expand(-1, missing)], dim=1)
    cells: Tensor = matrix.unflatten(1, (-1, size))
    return cells
