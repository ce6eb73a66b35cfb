"""Levels that serve given codes best, under the second moment of a layer's inputs.

With its codes fixed, a row of a quantized weight is linear in what its levels are made of: scales
and offsets of a grid, or the entries of a codebook. Those of least output error solve a small
linear system a row.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from tauten.formats.integer import grid_values, grouped
from tauten.formats.superblock import TwoLevelGrid, TwoLevelScales, two_level_values
from tauten.solvers.grid import Grid, better_grid
from tauten.solvers.second_order import output_error

CHUNK_VALUES = 2**22  # of the basis, worked on at once
RIDGE = 1e-6  # relative to the diagonal; decides only where codes leave a choice


def refit_grid(
    target: Tensor,
    moment: Tensor,
    codes: Tensor,
    bits: int,
    size: int,
    scale: Tensor,
    zero: Tensor | None,
) -> Grid:
    """Scales, and floating offsets, of least output error for fixed codes and integer zeros.

    Args:
        target: (out, in) floating, the weight to come near to.
        moment: (in, in) floating, second moment of the inputs.
        codes: (out, in) uint8.
        bits: Of a code.
        size: Columns a group.
        scale: (out, groups), as is `zero`: the grid that the codes were chosen on.
        zero: As `IntegerWeight.encode` takes it.
    Returns:
        A grid in the same dtypes; rows that it wouldn't serve better keep theirs.
    Cost: O(out * in^2) time, twice that with floating offsets.
    """
    parts: list[Grid] = []
    for rows in _chunks(target, 2):
        grid = scale[rows], None if zero is None else zero[rows]
        parts.append(_refit_rows(target[rows], moment, codes[rows].float(), bits, size, grid))
    zeros = [part[1] for part in parts if part[1] is not None]
    return torch.cat([part[0] for part in parts]), torch.cat(zeros) if zeros else None


def _refit_rows(
    target: Tensor, moment: Tensor, codes: Tensor, bits: int, size: int, grid: Grid
) -> Grid:
    (scale, zero), left = grid, target - grid_values(codes, bits, size, *grid)
    moved: Grid
    if zero is not None and zero.is_floating_point():
        basis = torch.stack([codes, torch.ones_like(codes)])
        change = least_squares(basis, left, moment, size)
        moved = (scale + change[..., 0]).to(scale.dtype), (zero + change[..., 1]).to(zero.dtype)
    else:
        basis = grid_values(codes, bits, size, torch.ones_like(scale), zero)[None]
        change = least_squares(basis, left, moment, size)
        moved = (scale + change[..., 0]).to(scale.dtype), zero
    error = output_error(left, moment)[:, None]
    moved_error = output_error(grid_values(codes, bits, size, *moved) - target, moment)[:, None]
    serves = (moved[0].float() * scale.float() > 0).all(1, keepdim=True)  # a scale keeps its sign
    return better_grid(grid, error, moved, torch.where(serves, moved_error, torch.inf))[0]


def refit_two_level(
    target: Tensor, moment: Tensor, codes: Tensor, grid: TwoLevelGrid, scales: TwoLevelScales
) -> TwoLevelScales:
    """Super-scales of least output error for fixed codes of weights, scales and offsets.

    Args:
        target: (out, in) floating, the weight to come near to.
        moment: (in, in) floating, second moment of the inputs.
        codes: (out, in) uint8.
        grid: What codes and scales mean.
        scales: Those that the codes were chosen on.
    Returns:
        In the same dtypes; rows that they wouldn't serve better keep theirs.
    Cost: O(superblocks * out * in^2) time.
    """
    supers, zeros = scales.super_scale.clone(), scales.super_zero
    zeros = None if zeros is None else zeros.clone()
    for rows in _chunks(target, 2):
        own = TwoLevelScales(*(part[rows] for part in scales if part is not None))
        new = _refit_supers(target[rows].float(), moment, codes[rows], grid, own)
        supers[rows] = new.super_scale
        if zeros is not None and new.super_zero is not None:
            zeros[rows] = new.super_zero
    return scales._replace(super_scale=supers, super_zero=zeros)


def _refit_supers(
    target: Tensor, moment: Tensor, codes: Tensor, grid: TwoLevelGrid, scales: TwoLevelScales
) -> TwoLevelScales:
    ones, nothing = (
        torch.ones(scales.super_scale.shape, dtype=torch.float32),
        torch.zeros(scales.super_scale.shape, dtype=torch.float32),
    )
    alone = [scales._replace(super_scale=ones)]  # what one super-scale at a time multiplies
    if scales.super_zero is not None:
        alone = [alone[0]._replace(super_zero=nothing)]
        alone.append(scales._replace(super_scale=nothing, super_zero=ones))
    basis = torch.stack([two_level_values(codes, grid, some) for some in alone])
    left = target - two_level_values(codes, grid, scales)
    change = least_squares(basis, left, moment, grid.superblock or target.shape[1])
    moved = scales._replace(super_scale=_moved(scales.super_scale, change[..., 0]))
    if scales.super_zero is not None:
        moved = moved._replace(super_zero=_moved(scales.super_zero, change[..., 1]))
    after = target - two_level_values(codes, grid, moved)
    better = (output_error(after, moment) < output_error(left, moment))[:, None]
    chosen = moved._replace(super_scale=torch.where(better, moved[1], scales[1]))
    if moved.super_zero is not None and scales.super_zero is not None:
        zeros = torch.where(better, moved.super_zero, scales.super_zero)
        chosen = chosen._replace(super_zero=zeros)
    return chosen


def _moved(supers: Tensor, change: Tensor) -> Tensor:
    """Super-scales after a change that leaves them their sign, in their dtype."""
    moved = supers.float() + change
    return torch.where(moved * supers.float() > 0, moved, supers.float()).to(supers.dtype)


def refit_books(target: Tensor, moment: Tensor, codes: Tensor, books: Tensor) -> Tensor:
    """Entries of one codebook a row of least output error for fixed codes.

    Args:
        target: (out, in) floating, the weight to come near to.
        moment: (in, in) floating, second moment of the inputs.
        codes: (out, in) uint8.
        books: (out, entries) floating, what the codes were chosen from.
    Returns:
        Books in the same dtype, not sorted; rows that they wouldn't serve better keep theirs.
    Cost: O(entries * out * in^2) time.
    Source: the codebook step of LNQ, Kim et al. 2025, arXiv:2505.07004.
    """
    books, count = books.clone(), books.shape[1]
    for rows in _chunks(target, count):
        code, old = codes[rows].long(), books[rows]
        before = old.float().gather(1, code) - target[rows]
        basis = torch.stack([code == entry for entry in range(count)]).float()
        change = least_squares(basis, -before, moment, target.shape[1])[:, 0]
        new = (old + change).to(old.dtype)
        after = new.float().gather(1, code) - target[rows]
        better = output_error(after, moment) < output_error(before, moment)
        books[rows] = torch.where(better[:, None], new, old)
    return books


def least_squares(basis: Tensor, target: Tensor, moment: Tensor, size: int) -> Tensor:
    """Coefficients with which a sum of functions on each group of columns comes nearest to rows.

    Row w of the target is approached by sum_k c[g, k] basis[k] on the columns of group g, and the
    distance d is measured as d H d^T.

    Args:
        basis: (functions, out, in) float32.
        target: (out, in) float32.
        moment: (in, in) float32, H.
        size: Columns a group.
    Returns:
        (out, groups, functions) float32; 0 for a function that is 0 on a group.
    """
    count, out, columns = basis.shape
    groups = -(-columns // size)
    normal = torch.empty(out, groups, count, groups, count, dtype=torch.float64)
    for group in range(groups):
        part = slice(group * size, min((group + 1) * size, columns))
        for k in range(count):
            pulled = basis[k, :, part] @ moment[part]  # (out, in)
            normal[:, group, k] = _group_sums(basis * pulled, size)
    right = _group_sums(basis * (target @ moment), size).double().reshape(out, -1, 1)
    system = normal.view(out, groups * count, groups * count)
    diagonal = system.diagonal(dim1=1, dim2=2)
    diagonal.mul_(1 + RIDGE).add_(diagonal == 0)
    found: Tensor = torch.linalg.solve(system, right).float()
    return found.view(out, groups, count)


def _group_sums(values: Tensor, size: int) -> Tensor:
    """(functions, out, in) summed over groups of columns: (out, groups, functions)."""
    count, out, columns = values.shape
    sums: Tensor = grouped(values.reshape(-1, columns), size).sum(-1)
    return sums.view(count, out, -1).permute(1, 2, 0)


def _chunks(matrix: Tensor, functions: int) -> Iterator[slice]:
    rows, columns = matrix.shape
    step = max(1, CHUNK_VALUES // (columns * functions))
    return (slice(start, start + step) for start in range(0, rows, step))
