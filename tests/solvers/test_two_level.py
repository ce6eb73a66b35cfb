"""Fitted two-level scales, against every choice of scale codes on tiny superblocks."""

import pytest
import torch
from torch import Tensor

from tauten.formats.superblock import SuperblockWeight, TwoLevelGrid, TwoLevelScales
from tauten.runtime import library
from tauten.solvers.two_level import column_rounder, fit_two_level, round_to_two_level


def squared_error(
    matrix: Tensor, grid: TwoLevelGrid, scales: TwoLevelScales, importance: Tensor | None = None
) -> Tensor:
    codes = round_to_two_level(matrix, grid, scales)
    found = SuperblockWeight.from_scales(tuple(matrix.shape), grid, codes, scales).dequantize()
    error = (found - matrix).double().square()
    return (error if importance is None else error * importance).sum()


def best_of_all(row: Tensor, grid: TwoLevelGrid) -> float:
    """Least squared error of one superblock, over all scale codes and a fine set of super-scales.

    Groups are independent for given super-scales, so each takes its best codes by itself.
    """
    symmetric = grid.zero_kind == "none"
    codes = torch.arange(2**grid.scale_bits, dtype=torch.float64)
    numbers = torch.zeros(1) if symmetric else codes
    level = torch.arange(2**grid.bits, dtype=torch.float64)
    if symmetric:
        codes, level = codes - 2 ** (grid.scale_bits - 1), level - 2 ** (grid.bits - 1)
    span = float(row.abs().max()) / float(codes.abs().max())
    steps = torch.linspace(0.02, 1.5, 75, dtype=torch.float64) * span
    units = torch.zeros(1) if symmetric else steps
    scale, depth = steps[:, None] * codes, units[:, None] * numbers  # a code of each column
    tables = scale[:, None, :, None, None] * level - depth[None, :, None, :, None]
    total = 0.0
    for group in row.double().split(grid.group_size):
        errors = sum((tables - value).square().amin(-1) for value in group)
        total = total + errors.amin((2, 3))  # (steps, units)
    return float(total.min())


@pytest.mark.parametrize(("bits", "zero"), [(2, "none"), (3, "none"), (2, "float")])
def test_it_comes_near_the_best_of_all_codes(bits: int, zero: str) -> None:
    grid = TwoLevelGrid(bits, 8, 24, 2 if zero == "float" else 3, zero)
    rows = torch.randn(6, 24, generator=torch.Generator().manual_seed(bits))
    ours = float(squared_error(rows, grid, fit_two_level(rows, grid)))
    best = sum(best_of_all(row, grid) for row in rows)
    assert ours < 1.07 * best


@pytest.mark.parametrize("zero", ["none", "float"])
@pytest.mark.parametrize("bits", [1, 2, 3, 4, 6, 8])
def test_it_beats_rounding_the_scales_afterwards(bits: int, zero: str) -> None:
    grid = TwoLevelGrid(bits, 16, 128, 4, zero)
    matrix = torch.randn(16, 250, generator=torch.Generator().manual_seed(bits))
    scales = fit_two_level(matrix, grid)
    spans = matrix[:, :128].unflatten(1, (8, 16))
    if zero == "none":
        top = spans.abs().amax(-1) / max(2 ** (bits - 1), 0.5)
        step = (top.amax(-1, keepdim=True) / 7).half()
        plain = TwoLevelScales((top / step.float()).round().clamp(0, 7).byte() + 8, step)
    else:
        low, high = spans.amin(-1).clamp(max=0), spans.amax(-1).clamp(min=0)
        width = (high - low) / (2**bits - 1)
        step, shift = (width.amax(-1, keepdim=True) / 15).half(), (-low).amax(-1, keepdim=True) / 15
        plain = TwoLevelScales(
            (width / step.float()).round().clamp(0, 15).byte(),
            step,
            (-low / shift).round().clamp(0, 15).byte(),
            shift.half(),
        )
    error = squared_error(matrix[:, :128], grid, fit_two_level(matrix[:, :128], grid))
    assert error < 0.95 * squared_error(matrix[:, :128], grid, plain)
    assert scales.super_scale.shape == (16, 2) and scales.scale_codes.shape == (16, 16)


def test_strong_columns_are_kept_closer() -> None:
    grid = TwoLevelGrid(2, 16, 64, 6, "float")
    matrix = torch.randn(8, 64, generator=torch.Generator().manual_seed(0))
    importance = torch.logspace(-2, 2, 64)[torch.randperm(64)]
    weighted = squared_error(matrix, grid, fit_two_level(matrix, grid, importance), importance)
    plain = squared_error(matrix, grid, fit_two_level(matrix, grid), importance)
    assert weighted < 0.9 * plain


@pytest.mark.parametrize("zero", ["none", "float"])
def test_constant_and_zero_groups_are_exact(zero: str) -> None:
    grid = TwoLevelGrid(3, 16, 64, 6, zero)
    matrix = torch.zeros(2, 64)
    assert squared_error(matrix, grid, fit_two_level(matrix, grid)) == 0
    matrix[0, 16:32] = -0.5
    assert squared_error(matrix, grid, fit_two_level(matrix, grid)) < 1e-6


@pytest.mark.parametrize("zero", ["none", "float"])
def test_columns_are_rounded_as_the_whole_matrix(zero: str) -> None:
    grid = TwoLevelGrid(3, 16, 64, 6, zero)
    matrix = torch.randn(8, 90, generator=torch.Generator().manual_seed(3))
    scales = fit_two_level(matrix, grid)
    codes = round_to_two_level(matrix, grid, scales)
    whole = SuperblockWeight.from_scales((8, 90), grid, codes, scales).dequantize()
    nearest = column_rounder(grid, scales)
    columns = torch.stack([nearest(matrix[:, i], i) for i in range(90)], 1)
    assert torch.allclose(columns, whole, atol=1e-6)


def test_both_super_scales_are_stored_alike() -> None:
    grid = TwoLevelGrid(8, 16, 64, 8, "float")
    matrix = 1e-3 * torch.rand(4, 64, generator=torch.Generator().manual_seed(4))
    scales = fit_two_level(matrix - 0.01, grid)  # scales are tiny, and offsets aren't
    assert scales.super_zero is not None
    assert scales.super_scale.dtype == scales.super_zero.dtype == torch.float32


@pytest.mark.skipif(library.load() is None, reason="the native library isn't built")
@pytest.mark.parametrize("zero", ["none", "float"])
@pytest.mark.parametrize("size", [16, 20])
def test_the_library_sums_as_plain_torch(
    monkeypatch: pytest.MonkeyPatch, zero: str, size: int
) -> None:
    """Groups of 20 don't fill the vectors that sums are taken in; the last of 90 columns is cut."""
    grid, generator = TwoLevelGrid(3, size, 0, 4, zero), torch.Generator().manual_seed(0)
    matrix, importance = (torch.randn(s, generator=generator) for s in ((9, 90), (90,)))
    importance = importance.square()
    ours = fit_two_level(matrix, grid, importance)
    monkeypatch.setattr(library, "load", lambda: None)
    plain = fit_two_level(matrix, grid, importance)
    errors = [squared_error(matrix, grid, scales, importance) for scales in (ours, plain)]
    torch.testing.assert_close(*errors, rtol=1e-3, atol=0)
    assert (ours.scale_codes == plain.scale_codes).float().mean() > 0.95
