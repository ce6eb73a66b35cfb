"""Fit a weight by signs times a scale: -1 and 1 (binary), or -1, 0 and 1 (ternary).

Scales have closed forms. For given signs t the squared error of a group, each column weighted by
its importance h, is least at scale sum(h t w) / sum(h t t). And the best signs put the largest |w|
on -1 and 1, whatever h: that leaves one count to find, by prefix sums.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from tauten.core.inputs import LayerInputs
from tauten.formats.integer import grouped
from tauten.solvers.grid import storable
from tauten.solvers.second_order import Curvature, curvature, sweep

CHUNK_WEIGHTS = 2**20  # of rows worked on at once, so that temporaries stay small
CHUNK_CELLS = 2**22  # numbers of the equations that are solved at once
RIDGE = 1e-4  # holds scales whose change would hardly matter


@dataclass(frozen=True)
class Signs:
    """One pass: weight = scale of the group * sign.

    Attributes:
        signs: (out, in) int8, -1, 0 and 1.
        scale: (out, groups) float16 or float32.
    """

    signs: Tensor
    scale: Tensor


def fit_signs(
    matrix: Tensor,
    with_zero: bool,
    group_size: int,
    passes: int,
    inputs: LayerInputs | None = None,
    damping: float = 0.01,
) -> list[Signs]:
    """Signs and scales whose sum over all passes comes near a weight.

    Without inputs each pass fits what the ones before have left. With inputs, scales are fitted so
    at first, columns weighted by the strength of their input; then the second-order sweep decides
    the signs, and the scales of all passes that fit these signs best are solved for.

    Args:
        matrix: (out, in) floating.
        with_zero: Ternary instead of binary.
        group_size: Columns a scale; 0 for the whole row.
        passes: At least 1.
        inputs: Of the layer.
        damping: Added to the diagonal of the second moment, relative to its mean.
    Raises:
        NotApplicableError: The inputs are all zero or not finite.
    Cost: with inputs, `passes` + 1 times O(out * in^2).
    """
    matrix, size = matrix.float(), group_size or matrix.shape[1]
    if inputs is None:
        return _fit_greedily(matrix, with_zero, size, passes, None)
    curve = curvature(inputs.moment, damping, by_importance=True)
    moment = inputs.moment.clone()
    moment.diagonal().add_(curve.damping * moment.diagonal().mean())
    start = _fit_greedily(matrix, with_zero, size, passes, moment.diagonal())
    scales = torch.stack([part.scale.float() for part in start])  # (passes, out, groups)
    signs = _sweep_signs(matrix, curve, scales, with_zero, size)
    scales = solve_scales(matrix, signs, scales, size, moment)
    # A scale below zero is one above it with the signs turned.
    turned = torch.where(scales < 0, -1, 1).to(torch.int8)
    signs *= _spread(turned, size, matrix.shape[1])
    return [Signs(own, storable(scale)) for own, scale in zip(signs, scales.abs(), strict=True)]


def _sweep_signs(
    matrix: Tensor, curve: Curvature, scales: Tensor, with_zero: bool, size: int
) -> Tensor:
    """Signs of all passes at given scales, decided column by column: (passes, out, in) int8."""
    signs = torch.empty(len(scales), *matrix.shape, dtype=torch.int8)

    def decide(values: Tensor, column: int) -> Tensor:
        found = torch.zeros_like(values)
        for own, scale in zip(signs, scales[..., column // size], strict=True):
            sign = nearest_signs(values - found, scale, with_zero)
            own[:, column] = sign
            found += sign * scale
        return found

    sweep(matrix, curve, decide)
    return signs


def _fit_greedily(
    matrix: Tensor, with_zero: bool, size: int, passes: int, importance: Tensor | None
) -> list[Signs]:
    step, found = max(1, CHUNK_WEIGHTS // matrix.shape[1]), []
    rest = matrix
    for _ in range(passes):
        rows = rest.split(step)
        scale = storable(torch.cat([best_scale(r, size, with_zero, importance) for r in rows]))
        spread = _spread(scale.float(), size, matrix.shape[1])
        signs = nearest_signs(rest, spread, with_zero)
        found.append(Signs(signs.to(torch.int8), scale))
        rest = rest - signs * spread
    return found


def best_scale(
    matrix: Tensor, size: int, with_zero: bool, importance: Tensor | None = None
) -> Tensor:
    """The scale of the best signs of each group, exactly.

    Args:
        matrix: (out, in) float32.
        size: Columns a group.
        with_zero: Ternary instead of binary.
        importance: (in,) positive weight of each column's squared error; None for equal ones.
    Returns:
        (out, groups) float32.
    Source: binary: Rastegari et al. 2016, arXiv:1603.05279, section 3.1. Ternary: the optimum that
    Li et al. 2016, arXiv:1605.04711, approximate by a threshold of 0.7 times the mean |w|.
    """
    if importance is None:
        importance = matrix.new_ones(matrix.shape[1])
    magnitude = grouped(matrix.abs(), size)  # (out, groups, size)
    weight = grouped(importance[None], size).expand_as(magnitude)  # 0 at padding
    if not with_zero:
        return (weight * magnitude).sum(-1) / weight.sum(-1)
    magnitude, order = magnitude.sort(-1, descending=True)
    weight = weight.gather(-1, order)
    total = (weight * magnitude).cumsum(-1)
    count = weight.cumsum(-1).clamp_min(torch.finfo(torch.float32).tiny)
    best = (total.square() / count).argmax(-1, keepdim=True)
    return (total / count).gather(-1, best).squeeze(-1)


def nearest_signs(values: Tensor, scale: Tensor, with_zero: bool) -> Tensor:
    """The sign whose level is nearest, in the dtype of the values."""
    signs = torch.where(values < 0, -1.0, 1.0)
    return signs * (2 * values.abs() > scale) if with_zero else signs


def solve_scales(
    matrix: Tensor, signs: Tensor, scales: Tensor, size: int, moment: Tensor
) -> Tensor:
    """The scales that keep a layer's outputs best, for given signs.

    A row is linear in its scales: w' = s B with a row of B for each pass and group. The least of
    (w - w') H (w - w')^T is where B H B^T s = B H w. Scales that it hardly depends on, such as
    those of a group of zeros, stay as they were.

    Args:
        matrix: (out, in) float32.
        signs: (passes, out, in) int8.
        scales: (passes, out, groups) float32, where to start.
        size: Columns a group.
        moment: (in, in) H, positive definite.
    Returns:
        (passes, out, groups) float32.
    """
    unknowns = scales.shape[0] * scales.shape[2]
    step = max(1, CHUNK_CELLS // max(unknowns**2, 4 * matrix.shape[1]))
    parts = zip(matrix.split(step), signs.split(step, 1), scales.split(step, 1), strict=True)
    return torch.cat([_solve_rows(*part, size, moment) for part in parts], 1)


def _solve_rows(matrix: Tensor, signs: Tensor, scales: Tensor, size: int, moment: Tensor) -> Tensor:
    passes, rows, groups = scales.shape
    basis = signs.float()
    missing = matrix - (basis * _spread(scales, size, matrix.shape[1])).sum(0)
    right = _by_group(missing @ moment, basis, size)  # (passes, rows, groups)
    left = torch.empty(passes, groups, passes, rows, groups, dtype=torch.float32)
    for group in range(groups):
        columns = slice(group * size, (group + 1) * size)
        reached = basis[..., columns] @ moment[columns]  # (passes, rows, in)
        for own in range(passes):
            left[own, group] = _by_group(reached[own], basis, size)
    unknowns = passes * groups
    equations = left.permute(3, 0, 1, 2, 4).reshape(rows, unknowns, unknowns)
    diagonal = equations.diagonal(dim1=1, dim2=2)
    diagonal.add_(RIDGE * diagonal.mean(1, keepdim=True) + torch.finfo(torch.float32).tiny)
    constants = right.permute(1, 0, 2).reshape(rows, unknowns)
    change: Tensor = torch.linalg.solve(equations, constants)
    return scales + change.view(rows, passes, groups).transpose(0, 1)


def _spread(values: Tensor, size: int, columns: int) -> Tensor:
    """What belongs to groups, (..., groups), for each of their columns: (..., columns)."""
    return values.repeat_interleave(size, -1)[..., :columns]


def _by_group(values: Tensor, basis: Tensor, size: int) -> Tensor:
    """Sums over the groups of values (rows, in) times basis (passes, rows, in)."""
    return torch.stack([grouped(values * own, size).sum(-1) for own in basis])
