"""Scales and offsets of a two-level grid: integers, and a float for each superblock of them.

Scales are chosen as they will be stored: what is lowered is the error of weights on the levels
that the rounded scales give, not on those of scales that are rounded afterwards.
"""

from collections.abc import Callable
from itertools import product

import torch
from torch import Tensor

from tauten.formats.integer import center, grouped
from tauten.formats.superblock import TwoLevelGrid, TwoLevelScales
from tauten.solvers.grid import storable

ROUNDS = 3
REACH = 2  # scale codes are tried this far up and down
SHRINKS = tuple(1.05 - 0.05 * step for step in range(13))
CHUNK_WEIGHTS = 2**20  # weights worked on at once, so that temporaries stay small


def fit_two_level(
    matrix: Tensor, grid: TwoLevelGrid, importance: Tensor | None = None
) -> TwoLevelScales:
    """Choose scales and offsets for the least squared error of rounding to nearest.

    Each group first gets the best floating scale and offset; these are rounded. Then, by turns,
    codes of scales are moved a little, and super-scales follow from least squares, as long as
    that lowers the error.

    Args:
        matrix: (out, in) floating.
        grid: What the scales mean.
        importance: (in,) weight of each column's squared error; None for equal ones.
    Cost: About 80 passes over the matrix with offsets, 40 without.
    """
    rows = max(1, CHUNK_WEIGHTS // matrix.shape[1])
    weights = torch.ones(matrix.shape[1]) if importance is None else importance.float()
    weights = grouped((weights + 1e-6 * weights.mean())[None], grid.group_size)
    parts = [_fit(part.float(), grid, weights) for part in matrix.split(rows)]
    filled = [[tensor for tensor in part if tensor is not None] for part in parts]
    return TwoLevelScales(*(torch.cat(tensors) for tensors in zip(*filled, strict=True)))


def round_to_two_level(matrix: Tensor, grid: TwoLevelGrid, scales: TwoLevelScales) -> Tensor:
    """Codes of the levels nearest to a matrix: (out, in) floating -> (out, in) uint8."""
    scale, offset = levels(grid, scales)
    parts = []
    for rows in torch.arange(len(matrix)).split(max(1, CHUNK_WEIGHTS // matrix.shape[1])):
        cells = grouped(matrix[rows].float(), grid.group_size)
        codes = _nearest(cells, scale[rows], offset[rows], grid.bits).to(torch.uint8)
        parts.append(codes.flatten(1)[:, : matrix.shape[1]])
    return torch.cat(parts)


def column_rounder(grid: TwoLevelGrid, scales: TwoLevelScales) -> Callable[[Tensor, int], Tensor]:
    """From a column's values (out,) and its index to the nearest levels of its group."""
    scale, offset = levels(grid, scales)

    def nearest(values: Tensor, column: int) -> Tensor:
        step, low = scale[:, column // grid.group_size], offset[:, column // grid.group_size]
        return _nearest(values[:, None], step, low, grid.bits)[:, 0].mul_(step).add_(low)

    return nearest


def levels(grid: TwoLevelGrid, scales: TwoLevelScales) -> tuple[Tensor, Tensor]:
    """Scale and offset (out, groups) float32 of each group, also of a symmetric one."""
    scale, zero = grid.expand(scales)
    return scale, -center(grid.bits) * scale if zero is None else zero


def _nearest(cells: Tensor, scale: Tensor, offset: Tensor, bits: int) -> Tensor:
    """Codes as floats: (out, groups, size), with (out, groups) scales, of which some may be 0."""
    inverse = torch.where(scale == 0, 0.0, 1 / scale)
    codes = (cells - offset[..., None]).mul_(inverse[..., None])
    return codes.round_().clamp_(0, 2**bits - 1)


def _error(cells: Tensor, weights: Tensor, scale: Tensor, offset: Tensor, bits: int) -> Tensor:
    """(out, groups) squared error of rounding to nearest."""
    error = _nearest(cells, scale, offset, bits).mul_(scale[..., None]).add_(offset[..., None])
    return error.sub_(cells).square_().mul_(weights).sum(-1)


def _fit(matrix: Tensor, grid: TwoLevelGrid, weights: Tensor) -> TwoLevelScales:
    cells = grouped(matrix, grid.group_size)  # (out, groups, size); fillers weigh nothing
    scales = _rounded(grid, *_best_spans(cells, grid, weights))
    for _ in range(ROUNDS):
        scales = _with_better_codes(cells, weights, grid, scales)
        scales = _with_better_supers(cells, weights, grid, scales)
    return _with_better_codes(cells, weights, grid, scales)


def _best_spans(cells: Tensor, grid: TwoLevelGrid, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Floating scale and offset of each group: spans of several widths, the best refined."""
    low, high = cells.amin(-1).clamp(max=0), cells.amax(-1).clamp(min=0)
    best_scale = best_offset = torch.zeros_like(low)
    best = (cells.square() * weights).sum(-1)
    middle = center(grid.bits)
    signs = (1.0,) if grid.zero_kind == "float" else (1.0, -1.0)
    for shrink, sign in product(SHRINKS, signs):
        if grid.zero_kind == "float":
            scale, offset = (high - low) * (shrink / (2**grid.bits - 1)), low * shrink
        else:
            scale = sign * shrink * torch.maximum(-low, high) / max(middle, 0.5)
            offset = -middle * scale
        for refined in (False, True):
            if refined:
                scale, offset = _least_squares(cells, weights, grid, scale, offset)
            error = _error(cells, weights, scale, offset, grid.bits)
            better = error < best
            best = torch.where(better, error, best)
            best_scale = torch.where(better, scale, best_scale)
            best_offset = torch.where(better, offset, best_offset)
    return best_scale, best_offset


def _least_squares(
    cells: Tensor, weights: Tensor, grid: TwoLevelGrid, scale: Tensor, offset: Tensor
) -> tuple[Tensor, Tensor]:
    """The best scale and offset for the codes that these give; no offset above 0."""
    codes = _nearest(cells, scale, offset, grid.bits)
    if grid.zero_kind == "none":
        codes -= center(grid.bits)
        square = (weights * codes.square()).sum(-1)
        scale = _ratio((weights * codes * cells).sum(-1), square, scale)
        return scale, -center(grid.bits) * scale
    total, cross = weights.sum(-1).expand_as(scale), (weights * codes).sum(-1)
    square, toward = (weights * codes.square()).sum(-1), (weights * codes * cells).sum(-1)
    mean = (weights * cells).sum(-1)
    first, second = _solve((square, cross, total), (toward, mean), (scale, offset))
    alone = _ratio(toward, square, scale)  # what an offset of 0 asks for
    below = second <= 0
    return torch.where(below, first, alone).clamp(min=0), torch.where(below, second, 0.0)


def _rounded(grid: TwoLevelGrid, scale: Tensor, offset: Tensor) -> TwoLevelScales:
    """Super-scales that just span the scales and offsets of each superblock, and codes of those."""
    middle = center(grid.scale_bits) if grid.zero_kind == "none" else 0
    top = 2**grid.scale_bits - 1 - middle

    def split(values: Tensor) -> tuple[Tensor, Tensor]:
        blocks = _superblocks(values, grid)  # (out, superblocks, groups)
        largest = blocks.gather(-1, blocks.abs().argmax(-1, keepdim=True))[..., 0]
        step = storable(largest / (-middle if middle else top))
        fine = grid.spread(step.float(), values.shape[1])
        codes = torch.where(fine == 0, 0.0, values / fine).round() + middle
        return codes.clamp(0, top + middle).to(torch.uint8), step

    if grid.zero_kind == "none":
        return TwoLevelScales(*split(scale))
    return TwoLevelScales(*split(scale), *split(-offset))


def _with_better_codes(
    cells: Tensor, weights: Tensor, grid: TwoLevelGrid, scales: TwoLevelScales
) -> TwoLevelScales:
    """Move the codes of each group's scale and offset to the best within `REACH`."""
    moves = range(-REACH, REACH + 1)
    best, best_error = scales, _error(cells, weights, *levels(grid, scales), grid.bits)
    for step, shift in product(moves, moves if scales.zero_codes is not None else (0,)):
        moved = scales._replace(scale_codes=_moved(scales.scale_codes, step, grid))
        if scales.zero_codes is not None:
            moved = moved._replace(zero_codes=_moved(scales.zero_codes, shift, grid))
        error = _error(cells, weights, *levels(grid, moved), grid.bits)
        better = error < best_error
        best_error = torch.where(better, error, best_error)
        best = _mixed(better, moved, best, ("scale_codes", "zero_codes"))
    return best


def _with_better_supers(
    cells: Tensor, weights: Tensor, grid: TwoLevelGrid, scales: TwoLevelScales
) -> TwoLevelScales:
    """Super-scales by least squares for codes as they are, where that lowers the error."""
    scale, offset = levels(grid, scales)
    codes = _nearest(cells, scale, offset, grid.bits)
    factor = scales.scale_codes.float()
    if scales.zero_codes is None or scales.super_zero is None:
        factor -= center(grid.scale_bits)
        codes -= center(grid.bits)

    def total(values: Tensor) -> Tensor:
        return _superblocks(values, grid).sum(-1)

    square = total((weights * codes.square()).sum(-1) * factor.square())
    toward = total((weights * codes * cells).sum(-1) * factor)
    if scales.zero_codes is None or scales.super_zero is None:
        found = _ratio(toward, square, scales.super_scale.float())
        moved = TwoLevelScales(scales.scale_codes, storable(found))
    else:
        shift = -scales.zero_codes.float()
        cross = total((weights * codes).sum(-1) * factor * shift)
        own = total(weights.sum(-1) * shift.square())
        mean = total((weights * cells).sum(-1) * shift)
        old = (scales.super_scale.float(), scales.super_zero.float())
        first, second = _solve((square, cross, own), (toward, mean), old)
        moved = scales._replace(super_scale=storable(first), super_zero=storable(second))
    before = total(_error(cells, weights, scale, offset, grid.bits))
    better = total(_error(cells, weights, *levels(grid, moved), grid.bits)) < before
    return _mixed(better, moved, scales, ("super_scale", "super_zero"))


def _mixed(
    chosen: Tensor, first: TwoLevelScales, second: TwoLevelScales, names: tuple[str, str]
) -> TwoLevelScales:
    """`second` with the named tensors of `first` where those are chosen."""
    pairs = {name: (getattr(first, name), getattr(second, name)) for name in names}
    return second._replace(
        **{name: torch.where(chosen, *pair) for name, pair in pairs.items() if pair[0] is not None}
    )


def _moved(codes: Tensor, step: int, grid: TwoLevelGrid) -> Tensor:
    return (codes.int() + step).clamp_(0, 2**grid.scale_bits - 1).to(torch.uint8)


def _superblocks(values: Tensor, grid: TwoLevelGrid) -> Tensor:
    """(out, groups) cut into (out, superblocks, groups of one), filled up with zeros."""
    per_block = grid.superblock // grid.group_size
    return grouped(values, per_block or values.shape[1])


def _ratio(above: Tensor, below: Tensor, otherwise: Tensor) -> Tensor:
    return torch.where(below > 0, above / below, otherwise)


def _solve(
    squares: tuple[Tensor, Tensor, Tensor],
    targets: tuple[Tensor, Tensor],
    otherwise: tuple[Tensor, Tensor],
) -> tuple[Tensor, Tensor]:
    """Solve [[a, b], [b, c]] [x, y] = targets elementwise; `otherwise` where it is singular."""
    a, b, c = squares
    determinant = a * c - b.square()
    usable = determinant > 1e-5 * a * c
    x = (targets[0] * c - targets[1] * b) / determinant
    y = (targets[1] * a - targets[0] * b) / determinant
    return torch.where(usable, x, otherwise[0]), torch.where(usable, y, otherwise[1])
