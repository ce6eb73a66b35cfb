"""HQQ: a grid that serves most weights closely and lets outliers be wrong; without data."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tauten.core.errors import InputError
from tauten.core.inputs import LayerInputs
from tauten.core.knobs import check_activation, check_bits, check_group_size
from tauten.core.technique import WeightTechnique
from tauten.formats.integer import ZERO_KINDS, IntegerWeight, grid_values, grouped, round_to_grid
from tauten.solvers.grid import Grid, better_grid, fit_grid, regress_grid
from tauten.solvers.nearest import round_by_rows

POWER = 0.7  # p of the l_p error
STRENGTH, GROWTH = 1.0, 1.2  # of the tie between errors and outliers: at first, and by round


@dataclass(frozen=True)
class HQQ(WeightTechnique):
    """Half-quadratic quantization: rounding to grids of least l_p error, p = 0.7. Needs no data.

    Errors of a few outliers count for little, so that the grid fits the mass of weights better
    than one of least squared error.

    Attributes:
        bits: 1 to 8.
        group_size: Columns that share a scale; 0 for one scale a row.
        zero: As for `rtn`; an integer zero stays that of least squared error.
        rounds: How often outliers and grid take turns.
        activation: As for `rtn`.

    Source: Badri and Shaji 2023, "Half-Quadratic Quantization of Large Machine Learning Models".
    There only offsets are solved for, from the widest span on. Here scales are too, from the grid
    of least squared error on; errors are measured in steps of the grid, so that the scale of the
    weights doesn't matter; and each group keeps the best grid it had.
    """

    name = "hqq"
    pillar = "quantize"

    bits: int = 4
    group_size: int = 64
    zero: str = "float"
    rounds: int = 20
    activation: str = "float"

    def __post_init__(self) -> None:
        check_bits(self.name, self.bits)
        check_group_size(self.name, self.group_size)
        if self.zero not in ZERO_KINDS:
            raise InputError(f"hqq: zero={self.zero!r}: expected one of {', '.join(ZERO_KINDS)}")
        if not isinstance(self.rounds, int) or self.rounds < 1:
            raise InputError(f"hqq: rounds={self.rounds}: expected a positive integer")
        check_activation(self.name, self.activation)

    @classmethod
    def space(cls) -> Mapping[str, Sequence[Any]]:
        return {
            "bits": (8, 6, 5, 4, 3, 2),
            "group_size": (32, 64, 128),
            "zero": ("float", "integer"),
        }

    def encode(self, weight: Tensor, inputs: LayerInputs | None = None) -> IntegerWeight:
        def fit(rows: Tensor) -> Grid:
            return half_quadratic_grid(rows, self.bits, self.group_size, self.zero, self.rounds)

        return round_by_rows(weight, self.bits, self.group_size, fit)


def half_quadratic_grid(
    matrix: Tensor, bits: int, group_size: int, zero: str, rounds: int = 20
) -> Grid:
    """Take turns at codes, outliers and the grid; keep each group's grid of least l_p error.

    Args:
        matrix: (out, in) floating.
        bits: 1 to 8.
        group_size: Columns a group; 0 for the whole row.
        zero: As for `fit_grid`, whose grids of least squared error are the start.
        rounds: How many turns.
    Returns:
        scale (out, groups), and the zero as `IntegerWeight.encode` takes it.
    """
    matrix, size = matrix.float(), group_size or matrix.shape[1]
    grid = fit_grid(matrix, bits, group_size, zero, "mse")
    best, best_error = grid, torch.full(grid[0].shape, torch.inf, dtype=torch.float32)
    for turn in range(rounds + 1):
        codes = round_to_grid(matrix, bits, group_size, *grid)
        error = grouped(matrix - grid_values(codes.float(), bits, size, *grid), size)
        best, best_error = better_grid(best, best_error, grid, error.abs().pow(POWER).sum(-1))
        step = grid[0].float()[..., None]
        outliers = shrink(error / step, STRENGTH * GROWTH**turn) * step
        target = matrix - outliers.flatten(1)[:, : matrix.shape[1]]
        grid = regress_grid(target, codes, bits, size, *grid)
    return best


def shrink(values: Tensor, strength: float) -> Tensor:
    """Take large values nearly whole and small ones not at all (p-shrinkage, Chartrand 2012)."""
    threshold = values.abs().clamp_min(torch.finfo(values.dtype).tiny).pow(POWER - 1) / strength
    return values.sign() * (values.abs() - threshold).clamp_min(0)
