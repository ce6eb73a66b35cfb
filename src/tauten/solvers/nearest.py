"""Encode a weight by rounding to the nearest level, a few rows at a time."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from tauten.formats.bits import pack, packed_bytes
from tauten.formats.integer import IntegerWeight, round_to_grid
from tauten.solvers.grid import Grid, fit_grid

CHUNK_WEIGHTS = 2**20  # rows worked on at once, so that temporaries stay small


def round_to_nearest(
    weight: Tensor,
    bits: int,
    group_size: int,
    zero: str,
    clip: str,
    importance: Tensor | Callable[[Tensor], Tensor] | None = None,
) -> IntegerWeight:
    """Fit a grid to each group of columns and round to it; arguments as in `fit_grid`.

    Args:
        weight: (out, in, ...) floating.
        importance: (in,), or a function of some rows (n, in) that gives it for each of them.
    """

    def fit(rows: Tensor) -> Grid:
        weights = importance(rows) if callable(importance) else importance
        return fit_grid(rows, bits, group_size, zero, clip, weights)

    return round_by_rows(weight, bits, group_size, fit)


def round_by_rows(
    weight: Tensor,
    bits: int,
    group_size: int,
    fit: Callable[[Tensor], Grid],
) -> IntegerWeight:
    """Round to the grids that `fit` finds for some rows at a time.

    Args:
        weight: (out, in, ...) floating.
        bits: 1 to 8.
        group_size: Columns a scale; 0 for the whole row.
        fit: From rows (n, in) to scale and zero, as `IntegerWeight.encode` takes them.
    """
    matrix = weight.flatten(1)
    rows, columns = matrix.shape
    groups = -(-columns // (group_size or columns))
    # Results have their place from the start: allocated among temporaries they would pin them.
    codes = torch.empty(rows, packed_bytes(columns, bits), dtype=torch.uint8)
    scales, zeros = (
        torch.empty(rows, groups, dtype=torch.float32),
        torch.empty(rows, groups, dtype=torch.float32),
    )
    half, zero_dtype = True, None
    for part in row_chunks(matrix):
        scale, offset = fit(matrix[part])
        codes[part] = pack(round_to_grid(matrix[part], bits, group_size, scale, offset), bits)
        scales[part], half = scale, half and scale.dtype is torch.float16
        if offset is not None:
            zeros[part], zero_dtype = offset, offset.dtype
    grid = torch.float16 if half else torch.float32  # float16 values stay exact in float32
    if zero_dtype is not None and zero_dtype.is_floating_point:
        zero_dtype = grid
    return IntegerWeight.from_packed(
        tuple(weight.shape),
        bits,
        group_size,
        codes,
        scales.to(grid),
        None if zero_dtype is None else zeros.to(zero_dtype),
    )


def row_chunks(matrix: Tensor) -> Iterator[slice]:
    """Rows of (rows, columns) in slices of about `CHUNK_WEIGHTS` weights."""
    rows, columns = matrix.shape
    step = max(1, CHUNK_WEIGHTS // columns)
    return (slice(start, start + step) for start in range(0, rows, step))
