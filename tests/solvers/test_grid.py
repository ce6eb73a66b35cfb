"""Fitted grids: they span what they should, and clipping only ever helps."""

import itertools

import pytest
import torch

from tauten.formats.integer import ZERO_KINDS, IntegerWeight, center, round_to_grid
from tauten.solvers.grid import fit_grid, regress_grid, storable

BITS = range(1, 9)
GROUPS = (0, 5, 32)
ROWS, COLUMNS = 8, 70


def matrix_of(seed: int) -> torch.Tensor:
    """Heavy tails, and rows of one sign each."""
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(ROWS, COLUMNS, generator=generator) ** 3
    matrix[0], matrix[1] = matrix[0].abs(), -matrix[1].abs()
    return matrix


def error_by_group(
    matrix: torch.Tensor, bits: int, group_size: int, zero: str, clip: str
) -> torch.Tensor:
    """(rows, groups) squared error of encoding, float64."""
    scale, offset = fit_grid(matrix, bits, group_size, zero, clip)
    packed = IntegerWeight.encode(matrix, bits, group_size, scale, offset)
    error = (packed.dequantize().double() - matrix.double()).square()
    return torch.stack([e.sum(1) for e in error.split(group_size or matrix.shape[1], dim=1)], dim=1)


@pytest.mark.parametrize("group_size", GROUPS)
@pytest.mark.parametrize("zero", ZERO_KINDS)
@pytest.mark.parametrize("bits", BITS)
def test_clipping_is_never_worse_in_any_group(bits: int, zero: str, group_size: int) -> None:
    matrix = matrix_of(bits)
    clipped = error_by_group(matrix, bits, group_size, zero, "mse")
    spanned = error_by_group(matrix, bits, group_size, zero, "minmax")
    assert (clipped <= spanned * (1 + 1e-5) + 1e-9).all()


@pytest.mark.parametrize("zero", ZERO_KINDS)
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_clipping_helps_bell_shaped_weights_at_few_bits(bits: int, zero: str) -> None:
    matrix = torch.randn(ROWS, 512, generator=torch.Generator().manual_seed(0))
    clipped = error_by_group(matrix, bits, 0, zero, "mse").sum()
    assert clipped < 0.9 * error_by_group(matrix, bits, 0, zero, "minmax").sum()


@pytest.mark.parametrize("group_size", GROUPS)
@pytest.mark.parametrize("zero", ZERO_KINDS)
@pytest.mark.parametrize("bits", range(2, 9))
def test_minmax_is_off_by_half_a_step_at_most(bits: int, zero: str, group_size: int) -> None:
    matrix = matrix_of(bits)
    scale, offset = fit_grid(matrix, bits, group_size, zero, "minmax")
    packed = IntegerWeight.encode(matrix, bits, group_size, scale, offset)
    group = torch.arange(COLUMNS) // (group_size or COLUMNS)
    # An integer zero rounds the ends of its span by up to half a step, float16 by 2**-11 of them.
    reach = (0.5 if zero != "integer" else 1.0) * scale.float()[:, group]
    slack = 2**-10 * matrix.abs().amax(1, keepdim=True)
    assert ((packed.dequantize() - matrix).abs() <= reach + slack).all()


@pytest.mark.parametrize("bits", range(2, 9))
def test_zero_is_a_level_unless_the_offset_is_free(bits: int) -> None:
    matrix = matrix_of(bits)
    matrix[:, ::3] = 0
    for zero in ("none", "integer"):
        for clip in ("minmax", "mse"):
            scale, offset = fit_grid(matrix, bits, 32, zero, clip)
            packed = IntegerWeight.encode(matrix, bits, 32, scale, offset)
            assert not packed.dequantize()[:, ::3].any()


@pytest.mark.parametrize("clip", ["minmax", "mse"])
@pytest.mark.parametrize("zero", ["float", "none"])
@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("value", [0.0, 1.0, -0.75, 1e-6, 1e6])
def test_a_constant_weight_is_kept(value: float, bits: int, zero: str, clip: str) -> None:
    matrix = torch.full((3, 40), value)
    scale, offset = fit_grid(matrix, bits, 32, zero, clip)
    packed = IntegerWeight.encode(matrix, bits, 32, scale, offset)
    assert torch.allclose(packed.dequantize(), matrix, rtol=2**-11, atol=0)


@pytest.mark.parametrize("zero", ZERO_KINDS)
def test_the_last_short_group_is_fitted_to_its_own_columns(zero: str) -> None:
    matrix = matrix_of(0) + 3
    scale, offset = fit_grid(matrix, 4, 32, zero, "minmax")
    alone, alone_offset = fit_grid(matrix[:, 64:], 4, 0, zero, "minmax")
    assert torch.equal(scale[:, -1:], alone)
    if offset is not None and alone_offset is not None:
        assert torch.equal(offset[:, -1:], alone_offset)


@pytest.mark.parametrize(
    ("scales", "dtype"),
    [
        ([0.0, 1.0, 65504.0, 2.0**-14], torch.float16),
        ([1.0, 65505.0], torch.float32),
        ([1.0, 2.0**-15], torch.float32),
    ],
)
def test_scales_are_halves_where_the_range_of_halves_holds(
    scales: list[float], dtype: torch.dtype
) -> None:
    stored = storable(torch.tensor(scales))
    assert stored.dtype is dtype
    assert torch.allclose(stored.float(), torch.tensor(scales), rtol=2**-11, atol=0)


def test_one_tiny_offset_does_not_widen_all_offsets() -> None:
    matrix = torch.rand(16, 64, generator=torch.Generator().manual_seed(0)) + 0.5
    matrix[3, 7] = 1e-6
    scale, offset = fit_grid(matrix, 4, 32, "float", "minmax")
    assert offset is not None
    assert (scale.dtype, offset.dtype) == (torch.float16, torch.float16)


@pytest.mark.parametrize("zero", ZERO_KINDS)
@pytest.mark.parametrize("factor", [1e-9, 1e9])
def test_weights_beyond_the_range_of_halves_keep_their_relative_error(
    zero: str, factor: float
) -> None:
    matrix = matrix_of(0)
    errors = [
        float(error_by_group(m, 4, 32, zero, "mse").sum() / m.double().square().sum())
        for m in (matrix, matrix * factor)
    ]
    assert errors[1] == pytest.approx(errors[0], rel=0.02)


@pytest.mark.parametrize("zero", ZERO_KINDS)
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_grids_are_near_the_best_of_a_dense_search(bits: int, zero: str) -> None:
    """Every scale and zero in fine steps, for a handful of rows with one group each."""
    matrix = torch.randn(12, 64, generator=torch.Generator().manual_seed(bits)) + 0.3
    ours = error_by_group(matrix, bits, 0, zero, "mse")[:, 0]
    span, top = matrix.amax(1) - matrix.amin(1), 2**bits - 1
    best = torch.full((12,), torch.inf, dtype=torch.float64)
    lows = {
        "none": [0.0],
        "integer": list(range(top + 1)),
        "float": torch.linspace(0, 1, 40).tolist(),
    }
    for shrink in torch.linspace(0.2, 1.3, 80).tolist():
        scale = (shrink * span / top)[:, None]
        for low in lows[zero]:
            offset = None if zero == "none" else torch.full_like(scale, low)
            if offset is not None:
                is_code = zero == "integer"
                offset = (
                    offset.to(torch.uint8) if is_code else matrix.amin(1)[:, None] + low * scale
                )
            packed = IntegerWeight.encode(matrix, bits, 0, scale, offset)
            best = torch.minimum(best, (packed.dequantize() - matrix).double().square().sum(1))
    assert ours.sum() < 1.15 * best.sum()


@pytest.mark.parametrize("zero", ZERO_KINDS)
def test_regression_is_weighted_least_squares(zero: str) -> None:
    matrix, importance = matrix_of(3), torch.rand(COLUMNS, generator=torch.manual_seed(4))
    matrix *= 1e6  # so that scales are float32
    grid = fit_grid(matrix, 3, 32, zero, "minmax")
    codes = round_to_grid(matrix, 3, 32, *grid)
    found = regress_grid(matrix, codes, 3, 32, *grid, importance)
    for row, group in itertools.product(range(ROWS), range(3)):
        part = slice(32 * group, 32 * group + 32)
        code, root = codes[row, part].double(), importance[part].double().sqrt()
        fixed = center(3) if grid[1] is None else float(grid[1][row, group])
        one = torch.ones_like(code)
        design = torch.stack([code, one] if zero == "float" else [code - fixed], 1) * root[:, None]
        wanted = torch.linalg.lstsq(design, (matrix[row, part] * root)[:, None]).solution[:, 0]
        assert float(found[0][row, group]) == pytest.approx(float(wanted[0]), rel=1e-3)
        if zero == "float" and found[1] is not None:
            assert float(found[1][row, group]) == pytest.approx(float(wanted[1]), rel=1e-3)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_a_symmetric_scale_turns_to_the_side_that_reaches_further(bits: int) -> None:
    for sign in (-1.0, 1.0):  # the levels of a grid with one level more on that side
        matrix = sign * torch.arange(-(2 ** (bits - 1)), 2 ** (bits - 1)).float()[None]
        scale, _ = fit_grid(matrix, bits, 0, "none", "mse")
        assert scale.tolist() == [[sign]]
