"""Refitted levels against least squares on the inputs themselves, in float64."""

import pytest
import torch

from tauten.formats.integer import ZERO_KINDS, grid_values, round_to_grid
from tauten.formats.superblock import TwoLevelGrid, two_level_values
from tauten.solvers.grid import fit_grid
from tauten.solvers.refit import least_squares, refit_books, refit_grid, refit_two_level
from tauten.solvers.second_order import output_error
from tauten.solvers.two_level import fit_two_level, round_to_two_level

ROWS, COLUMNS, TOKENS = 5, 22, 400


def inputs_of(seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(COLUMNS, COLUMNS, generator=generator)
    return torch.randn(TOKENS, COLUMNS, generator=generator) @ mixing


def moment_of(inputs: torch.Tensor) -> torch.Tensor:
    return inputs.t() @ inputs / TOKENS


@pytest.mark.parametrize("functions", [1, 2, 4])
@pytest.mark.parametrize("size", [COLUMNS, 8])  # 8 leaves a short last group
def test_coefficients_are_those_of_least_squares_on_outputs(functions: int, size: int) -> None:
    generator = torch.Generator().manual_seed(size)
    basis = torch.randn(functions, ROWS, COLUMNS, generator=generator)
    target, inputs = torch.randn(ROWS, COLUMNS, generator=generator), inputs_of(1)
    found = least_squares(basis, target, moment_of(inputs), size)
    group = torch.arange(COLUMNS) // size
    for row in range(ROWS):
        parts = [
            inputs * basis[k, row] * (group == g) for g in group.unique() for k in range(functions)
        ]
        design = torch.stack([part.sum(1) for part in parts], dim=1).double()
        wanted = torch.linalg.lstsq(design, (inputs @ target[row]).double()[:, None]).solution
        torch.testing.assert_close(
            found[row].flatten().double(), wanted[:, 0], rtol=2e-3, atol=2e-3
        )


@pytest.mark.parametrize("zero", ZERO_KINDS)
@pytest.mark.parametrize("bits", [1, 2, 3, 8])
def test_a_grid_that_was_bent_is_found_again(bits: int, zero: str) -> None:
    matrix = torch.randn(ROWS, COLUMNS, generator=torch.Generator().manual_seed(bits))
    scale, offset = fit_grid(matrix, bits, 8, zero, "minmax")
    codes = round_to_grid(matrix, bits, 8, scale, offset)
    target = grid_values(codes.float(), bits, 8, scale, offset)
    bent = offset
    if offset is not None and zero == "float":
        bent = offset + 0.1
    found = refit_grid(target, moment_of(inputs_of(2)), codes, bits, 8, scale * 1.25, bent)
    again = grid_values(codes.float(), bits, 8, *found)
    assert found[0].dtype is scale.dtype
    assert (again - target).norm() < 2e-3 * target.norm()


@pytest.mark.parametrize("zero", ZERO_KINDS)
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_no_row_gets_worse_and_most_get_better(bits: int, zero: str) -> None:
    matrix = torch.randn(64, COLUMNS, generator=torch.Generator().manual_seed(bits))
    moment, grid = moment_of(inputs_of(3)), fit_grid(matrix, bits, 8, zero, "mse")
    codes = round_to_grid(matrix, bits, 8, *grid)
    found = refit_grid(matrix, moment, codes, bits, 8, *grid)
    before, after = (
        output_error(grid_values(codes.float(), bits, 8, *g) - matrix, moment)
        for g in (grid, found)
    )
    assert (after <= before * (1 + 1e-5)).all()
    assert (after < 0.95 * before).float().mean() > 0.5


def test_with_independent_inputs_entries_are_means() -> None:
    generator = torch.Generator().manual_seed(4)
    matrix = torch.randn(ROWS, COLUMNS, generator=generator)
    codes = torch.randint(0, 4, (ROWS, COLUMNS), generator=generator).to(torch.uint8)
    books = refit_books(matrix, torch.eye(COLUMNS), codes, torch.zeros(ROWS, 4))
    for row in range(ROWS):
        means = torch.stack([matrix[row][codes[row] == entry].mean() for entry in range(4)])
        torch.testing.assert_close(books[row], means, rtol=1e-4, atol=1e-5)


def test_an_entry_that_no_code_names_stays() -> None:
    generator = torch.Generator().manual_seed(5)
    matrix = torch.randn(ROWS, COLUMNS, generator=generator)
    codes = torch.randint(0, 3, (ROWS, COLUMNS), generator=generator).to(torch.uint8)
    start = torch.full((ROWS, 4), 0.5, dtype=torch.float16)
    books = refit_books(matrix, moment_of(inputs_of(6)), codes, start)
    assert books.dtype is torch.float16
    assert (books[:, 3] == 0.5).all() and (books[:, :3] != 0.5).any()


@pytest.mark.parametrize("superblock", [0, 16])
@pytest.mark.parametrize("zero", ["float", "none"])
def test_bent_super_scales_are_found_again(zero: str, superblock: int) -> None:
    matrix = torch.randn(ROWS, COLUMNS, generator=torch.Generator().manual_seed(3))
    grid = TwoLevelGrid(3, 8, superblock, 4, zero)
    scales = fit_two_level(matrix, grid)
    codes = round_to_two_level(matrix, grid, scales)
    target = two_level_values(codes, grid, scales)
    bent = scales._replace(super_scale=scales.super_scale * 1.25)
    if scales.super_zero is not None:
        bent = bent._replace(super_zero=scales.super_zero * 0.75)
    found = refit_two_level(target, moment_of(inputs_of(2)), codes, grid, bent)
    assert found.super_scale.dtype is scales.super_scale.dtype
    assert (two_level_values(codes, grid, found) - target).norm() < 2e-3 * target.norm()
