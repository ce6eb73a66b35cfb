"""Learned rounding against all ways to round."""

import itertools

import pytest
import torch
from torch import Tensor

from tauten.core.errors import NotApplicableError
from tauten.formats.integer import grid_values, round_to_grid
from tauten.solvers.grid import fit_grid
from tauten.solvers.learned_rounding import learned_codes
from tauten.solvers.second_order import output_error

SIZE = 10


def correlated_moment(seed: int, size: int = SIZE) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(size, size, generator=generator)
    x = torch.randn(500, size, generator=generator) @ mixing + 1
    return x.t() @ x / 500


@pytest.mark.parametrize("seed", range(4))
def test_it_is_near_the_best_of_all_ways_to_round(seed: int) -> None:
    weight = torch.randn(4, SIZE, generator=torch.Generator().manual_seed(seed))
    moment = correlated_moment(seed)
    scale, _ = fit_grid(weight, 3, 0, "none", "minmax")
    below = ((weight / scale.float()).floor() + 4).clamp(0, 6)
    ways = torch.tensor(list(itertools.product((0, 1), repeat=SIZE)))  # (1024, SIZE)
    all_codes = below[:, None] + ways
    changes = (all_codes - 4) * scale.float()[..., None] - weight[:, None]
    best = output_error(changes.flatten(0, 1), moment).view(4, -1).amin(1).sum()

    def error(codes: Tensor) -> Tensor:
        return output_error(grid_values(codes.float(), 3, SIZE, scale, None) - weight, moment).sum()

    found = error(learned_codes(weight, moment, (3, 0, scale, None), 200))
    nearest = error(round_to_grid(weight, 3, 0, scale, None))
    assert found <= 1.3 * best and found < 0.75 * nearest


def test_independent_inputs_are_rounded_to_nearest() -> None:
    weight = torch.randn(8, 64, generator=torch.Generator().manual_seed(2))
    grid = (4, 32, *fit_grid(weight, 4, 32, "integer", "mse"))
    found = learned_codes(weight, torch.eye(64), grid, 50)
    assert torch.equal(found, round_to_grid(weight, *grid))


def test_inputs_of_zero_are_refused() -> None:
    weight = torch.randn(8, 64)
    grid = (4, 0, *fit_grid(weight, 4, 0, "none", "mse"))
    with pytest.raises(NotApplicableError, match="zero"):
        learned_codes(weight, torch.zeros(64, 64), grid, 5)
