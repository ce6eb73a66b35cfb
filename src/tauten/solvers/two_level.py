"""Scales and offsets of a two-level grid: small integers, and a float for each superblock of them.

They are chosen as they will be stored: what is lowered is the error on the levels that rounded
scales give, not on those of ideal scales that are rounded afterwards.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from tauten.formats.integer import center, grouped
from tauten.formats.superblock import TwoLevelGrid, TwoLevelScales
from tauten.runtime import library, solve
from tauten.solvers.columns import GridRounder

ROUNDS = 2
REACH = 1  # codes of scales are tried this far up and down
SHRINKS = tuple(1.05 - 0.05 * step for step in range(13))  # of the span of a group
SUPER_SHRINKS = (1.0, 0.9, 0.8)  # of the span of a superblock's scales
CHUNK_WEIGHTS = 2**20  # weights worked on at once, so that temporaries stay small
SMALLEST_STEP = 2.0**-18  # a super-scale below it would lose more than 1/128 in float16


def fit_two_level(
    matrix: Tensor, grid: TwoLevelGrid, importance: Tensor | None = None
) -> TwoLevelScales:
    """Choose scales and offsets for the least squared error of rounding to nearest.

    Each group first gets its best floating scale and offset, which are rounded. Then, by turns,
    super-scales follow from least squares and the groups' codes move a little, where that lowers
    the error.

    Args:
        matrix: (out, in) floating.
        grid: What the scales mean.
        importance: (in,) weight of each column's squared error; None for equal ones.
    Cost: About 80 passes over the matrix with offsets, 100 without.
    """
    weights = (
        torch.ones(matrix.shape[1], dtype=torch.float32)
        if importance is None
        else importance.float()
    )
    weights = grouped((weights + 1e-6 * weights.mean())[None], grid.group_size)
    rows = matrix.split(_rows_at_once(matrix.shape[1]))
    parts = (grouped(part.float().contiguous(), grid.group_size) for part in rows)
    cells = (_Cells(part, weights, grid) for part in parts)
    fitted = [_fit(some) for some in cells]
    scale_codes, super_scale, zero_codes, super_zero = map(torch.cat, zip(*fitted, strict=True))
    fits = bool(_fits_half(super_scale).all() and _fits_half(super_zero).all())
    dtype = torch.float16 if fits else torch.float32
    scale_codes = (scale_codes + _middles(grid)[1]).to(torch.uint8)
    if grid.zero_kind == "none":
        return TwoLevelScales(scale_codes, super_scale.to(dtype))
    zero_codes = zero_codes.to(torch.uint8)
    return TwoLevelScales(scale_codes, super_scale.to(dtype), zero_codes, super_zero.to(dtype))


def round_to_two_level(matrix: Tensor, grid: TwoLevelGrid, scales: TwoLevelScales) -> Tensor:
    """Codes of the levels nearest to a matrix: (out, in) floating -> (out, in) uint8."""
    columns, middle, parts = matrix.shape[1], _middles(grid)[0], []
    rows = _rows_at_once(columns)
    levels = (level.split(rows) for level in _levels(grid, scales))
    for part, scale, offset in zip(matrix.split(rows), *levels, strict=True):
        codes = _nearest(grouped(part.float(), grid.group_size), scale, offset, grid) + middle
        parts.append(codes.to(torch.uint8).flatten(1)[:, :columns])
    return torch.cat(parts)


def column_rounder(grid: TwoLevelGrid, scales: TwoLevelScales) -> GridRounder:
    """From a column's values (out,) and its index to the nearest levels of its group."""
    scale, offset = _levels(grid, scales)
    return GridRounder(scale, offset - _middles(grid)[0] * scale, 2**grid.bits - 1, grid.group_size)


@dataclass(frozen=True)
class _Cells:
    """Some rows of a matrix, in groups, and what rounding them costs.

    Throughout, a level is scale * code - depth: codes of weights and of scales are counted from
    the centre on a symmetric grid, whose depth is 0.

    Attributes:
        values: (out, groups, size) float32, contiguous.
        weights: (1, groups, size) of squared errors; 0 where a group is filled up.
        grid: What scales mean.
    """

    values: Tensor
    weights: Tensor
    grid: TwoLevelGrid

    @property
    def has_depth(self) -> float:
        """1, or 0 on a symmetric grid."""
        return float(self.grid.zero_kind == "float")

    def error(self, scale: Tensor, depth: Tensor) -> Tensor:
        """(out, groups) squared error of rounding to nearest."""
        native = library.load()
        if native is not None:
            return self._native_sums(native, (scale, depth), codes=False)
        error = _nearest(self.values, scale, -depth, self.grid).mul_(scale[..., None])
        error.sub_(depth[..., None]).sub_(self.values)
        return error.square_().mul_(self.weights).sum(-1)

    def normal_equations(self, scale: Tensor, depth: Tensor) -> tuple[Tensor, ...]:
        """Sums (out, groups) for the least squares of scale and depth, given codes of these.

        Returns:
            Of squares, cross products and squares of what the two multiply; of each by the values.
        """
        squares, codes, products = self._code_sums(scale, depth)
        own, alone = self._depth_sums
        return squares, -self.has_depth * codes, own, products, alone

    @functools.cached_property
    def _depth_sums(self) -> tuple[Tensor, Tensor]:
        """Sums (out, groups) that don't depend on codes: those of depth alone."""
        alone = -self.has_depth * (self.weights * self.values).sum(-1)
        return self.has_depth * self.weights.sum(-1).expand_as(alone), alone

    def _code_sums(self, scale: Tensor, depth: Tensor) -> Sequence[Tensor]:
        """Weighted sums (out, groups) of squared codes, of codes, and of codes by values."""
        native = library.load()
        if native is not None:
            return self._native_sums(native, (scale, depth), codes=True).unbind(-1)
        codes = _nearest(self.values, scale, -depth, self.grid)
        weighted = self.weights * codes
        return [(weighted * other).sum(-1) for other in (codes, 1.0, self.values)]

    def _native_sums(
        self, native: library.Library, scales: tuple[Tensor, Tensor], codes: bool
    ) -> Tensor:
        cells, middle = (self.values, self.weights), _middles(self.grid)[0]
        return solve.cell_sums(native, cells, scales, middle, self.grid.bits, codes)

    def superblocks(self, values: Tensor) -> Tensor:
        """(out, groups) cut into (out, superblocks, groups of one), filled up with zeros."""
        size = self.grid.superblock // self.grid.group_size
        return grouped(values, size or values.shape[1])

    def expand(self, fit: "_Scales") -> tuple[Tensor, Tensor]:
        """Scale and depth of each group."""
        factor, step, number, unit = fit
        groups = factor.shape[1]
        return factor * self.grid.spread(step, groups), number * self.grid.spread(unit, groups)

    def block_error(self, fit: "_Scales") -> Tensor:
        """(out, superblocks) squared error of rounding to nearest."""
        return self.superblocks(self.error(*self.expand(fit))).sum(-1)

    def merge(self, chosen: Tensor, new: "_Scales", old: "_Scales") -> "_Scales":
        """`new` in the chosen superblocks, (out, superblocks) bool, and `old` in the others."""
        groups = self.grid.spread(chosen, self.values.shape[1])
        return (
            torch.where(groups, new[0], old[0]),
            torch.where(chosen, new[1], old[1]),
            torch.where(groups, new[2], old[2]),
            torch.where(chosen, new[3], old[3]),
        )


# As TwoLevelScales, in float32: codes of scales from their centre, and rounded super-scales.
_Scales = tuple[Tensor, Tensor, Tensor, Tensor]


def _fit(cells: _Cells) -> _Scales:
    fit = _best_rounded(cells, *_best_spans(cells))
    for _ in range(ROUNDS):
        fit = _with_better_codes(cells, fit)
        fit = _with_better_supers(cells, fit)
    return _with_better_codes(cells, fit)


def _best_spans(cells: _Cells) -> tuple[Tensor, Tensor]:
    """Floating scale and depth of each group: spans of several widths, and refined ones."""
    low, high = cells.values.amin(-1).clamp(max=0), cells.values.amax(-1).clamp(min=0)
    best_scale = best_depth = torch.zeros_like(low)
    best = cells.error(best_scale, best_depth)
    top = 2**cells.grid.bits - 1
    for shrink, sign in product(SHRINKS, (1,) if cells.has_depth else (1, -1)):
        if cells.has_depth:
            scale, depth = (high - low) * (shrink / top), -low * shrink
        else:
            reach = torch.maximum(-low, high) * shrink
            scale, depth = sign * reach / center(cells.grid.bits), torch.zeros_like(low)
        refined = _least_squares(cells.normal_equations(scale, depth), (scale, depth))
        for pair in ((scale, depth), refined):
            error = cells.error(*pair)
            better = error < best
            best = torch.where(better, error, best)
            best_scale = torch.where(better, pair[0], best_scale)
            best_depth = torch.where(better, pair[1], best_depth)
    return best_scale, best_depth


def _best_rounded(cells: _Cells, scale: Tensor, depth: Tensor) -> _Scales:
    """Codes of ideal scales and depths, with the best of some super-scales for each superblock."""
    lowest, highest = _code_range(cells.grid)
    sides = (lowest, highest) if lowest else (highest,)  # where the largest scale may go
    steps = [_rounded(cells, scale, side / s, lowest) for side, s in product(sides, SUPER_SHRINKS)]
    shrinks = SUPER_SHRINKS if cells.has_depth else (1.0,)
    units = [_rounded(cells, depth, highest / shrink, 0) for shrink in shrinks]
    fits = [(*step, *unit) for step, unit in product(steps, units)]
    best, least = fits[0], cells.block_error(fits[0])
    for fit in fits[1:]:
        error = cells.block_error(fit)
        best = cells.merge(error < least, fit, best)
        least = torch.minimum(error, least)
    return best


def _rounded(cells: _Cells, values: Tensor, reach: float, lowest: float) -> tuple[Tensor, Tensor]:
    """Codes of (out, groups) values, with the super-scale that brings the largest to `reach`."""
    values = values if lowest else values.clamp(min=0)
    blocks = cells.superblocks(values)
    largest = blocks.gather(-1, blocks.abs().argmax(-1, keepdim=True))[..., 0]
    step = _stored(largest / reach)
    codes = values * _inverse(cells.grid.spread(step, values.shape[1]))
    return codes.round().clamp(lowest, _code_range(cells.grid)[1]), step


def _with_better_codes(cells: _Cells, fit: _Scales) -> _Scales:
    """Move the codes of each group's scale and depth to the best within `REACH`."""
    factor, step, number, unit = fit
    lowest, highest = _code_range(cells.grid)
    best_factor, best_number = factor, number
    best = cells.error(*cells.expand(fit))
    moves = range(-REACH, REACH + 1)
    for up, down in product(moves, moves if cells.has_depth else (0,)):
        moved = (factor + up).clamp(lowest, highest), (number + down).clamp(0, highest)
        error = cells.error(*cells.expand((moved[0], step, moved[1], unit)))
        better = error < best
        best = torch.where(better, error, best)
        best_factor = torch.where(better, moved[0], best_factor)
        best_number = torch.where(better, moved[1], best_number)
    return best_factor, step, best_number, unit


def _with_better_supers(cells: _Cells, fit: _Scales) -> _Scales:
    """Super-scales by least squares for all codes as they are, where that lowers the error."""
    factor, step, number, unit = fit
    scale, depth = cells.expand(fit)
    squares, cross, own, toward, alone = cells.normal_equations(scale, depth)
    weighted = (
        squares * factor.square(),
        cross * factor * number,
        own * number.square(),
        toward * factor,
        alone * number,
    )
    sums = tuple(cells.superblocks(values).sum(-1) for values in weighted)
    new_step, new_unit = map(_stored, _least_squares(sums, (step, unit)))
    moved = (factor, new_step, number, new_unit)
    return cells.merge(cells.block_error(moved) < cells.block_error(fit), moved, fit)


def _least_squares(
    sums: tuple[Tensor, ...], otherwise: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """Solve [[a, b], [b, c]] [x, y] = [s, t] with y at least 0; `otherwise` where it's singular."""
    a, b, c, s, t = sums
    determinant = a * c - b.square()
    y = (t * a - s * b) / determinant
    y = torch.where(determinant > 1e-5 * a * c, y, otherwise[1]).clamp(min=0)
    return torch.where(a > 0, (s - y * b) / a, otherwise[0]), y


def _nearest(cells: Tensor, scale: Tensor, offset: Tensor, grid: TwoLevelGrid) -> Tensor:
    """Codes from their centre: (out, groups, size), or (out, size) with (out,) scales."""
    middle = _middles(grid)[0]
    codes = (cells - offset[..., None]).mul_(_inverse(scale)[..., None]).add_(middle)
    return codes.round_().clamp_(0, 2**grid.bits - 1).sub_(middle)


def _levels(grid: TwoLevelGrid, scales: TwoLevelScales) -> tuple[Tensor, Tensor]:
    scale, offset = grid.expand(scales)
    return scale, torch.zeros_like(scale) if offset is None else offset


def _middles(grid: TwoLevelGrid) -> tuple[float, float]:
    """What codes of weights and of scales are counted from."""
    if grid.zero_kind == "float":
        return 0.0, 0.0
    return center(grid.bits), center(grid.scale_bits)


def _code_range(grid: TwoLevelGrid) -> tuple[float, float]:
    """The smallest and the largest code of a scale, from their centre."""
    middle = _middles(grid)[1]
    return -middle, 2**grid.scale_bits - 1 - middle


def _inverse(scale: Tensor) -> Tensor:
    """1 / scale; 0 where it is 0, whose group has one level only."""
    return torch.where(scale == 0, 0.0, 1 / scale)


def _stored(step: Tensor) -> Tensor:
    """Super-scales as they will be stored, in float32."""
    return torch.where(_fits_half(step), step.half().float(), step)


def _fits_half(step: Tensor) -> Tensor:
    magnitude = step.abs()
    small = (magnitude < SMALLEST_STEP) & (magnitude > 0)
    return ~small & (magnitude <= torch.finfo(torch.float16).max)


def _rows_at_once(columns: int) -> int:
    return max(1, CHUNK_WEIGHTS // columns)
