"""Signs and scales against brute force, and the equations of the scales against least squares."""

import itertools

import pytest
import torch

from tauten.core.inputs import LayerInputs
from tauten.solvers.second_order import output_error
from tauten.solvers.signs import best_scale, fit_signs, nearest_signs, solve_scales


def brute_force(group: torch.Tensor, importance: torch.Tensor, levels: list[float]) -> float:
    """The least weighted squared error over all signs, each with its best scale."""
    signs = torch.tensor(list(itertools.product(levels, repeat=len(group))))
    norm = (importance * signs.square()).sum(1).clamp_min(1e-12)
    scale = (importance * signs * group).sum(1) / norm
    return float((importance * (group - scale[:, None] * signs).square()).sum(1).min())


def error_of(
    group: torch.Tensor, scale: torch.Tensor, importance: torch.Tensor, with_zero: bool
) -> float:
    signs = nearest_signs(group, scale, with_zero)
    return float((importance * (group - scale * signs).square()).sum())


@pytest.mark.parametrize("with_zero", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_scale_is_the_optimum_over_all_signs(with_zero: bool, weighted: bool) -> None:
    levels = [-1.0, 0.0, 1.0] if with_zero else [-1.0, 1.0]
    generator = torch.Generator().manual_seed(0)
    for size in (1, 2, 5, 8):
        group = torch.randn(10, size, generator=generator) ** 3
        importance = torch.rand(size, generator=generator) + 0.01 if weighted else torch.ones(size)
        scale = best_scale(group, size, with_zero, importance if weighted else None)
        for row, own in zip(group, scale, strict=True):
            best = brute_force(row, importance, levels)
            assert error_of(row, own, importance, with_zero) == pytest.approx(best, rel=1e-4)


def test_the_ternary_scale_beats_the_threshold_of_twn() -> None:
    weight = torch.randn(200, 64, generator=torch.Generator().manual_seed(1)) ** 3
    scale = best_scale(weight, 64, True)
    ours = (weight - scale * nearest_signs(weight, scale, True)).square().sum(1)
    kept = weight.abs() > 0.7 * weight.abs().mean(1, keepdim=True)
    mean = (weight.abs() * kept).sum(1, keepdim=True) / kept.sum(1, keepdim=True)
    twn = (weight - mean * kept * weight.sign()).square().sum(1)
    assert bool((ours <= twn * 1.0001).all()) and ours.sum() < 0.95 * twn.sum()


@pytest.mark.parametrize("with_zero", [False, True])
def test_zeros_and_short_groups_are_fitted(with_zero: bool) -> None:
    weight = torch.zeros(3, 10)
    weight[1] = torch.tensor([2.0] * 8 + [-5.0] * 2)
    scale = best_scale(weight, 8, with_zero)
    assert torch.equal(scale, torch.tensor([[0.0, 0.0], [2.0, 5.0], [0.0, 0.0]]))
    (only,) = fit_signs(weight, with_zero, 8, 1)
    values = only.signs * only.scale.float().repeat_interleave(8, 1)[:, :10]
    assert torch.equal(values, weight)


def moment_of(size: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(size, size, generator=generator)
    inputs = torch.randn(400, size, generator=generator) @ mixing
    return inputs.t() @ inputs / 400


def test_solved_scales_are_those_of_least_squares() -> None:
    generator = torch.Generator().manual_seed(2)
    matrix, moment = torch.randn(4, 10, generator=generator), moment_of(10, 3)
    signs = torch.randint(-1, 2, (2, 4, 10), generator=generator, dtype=torch.int8)
    scales = solve_scales(matrix, signs, torch.ones(2, 4, 3), 4, moment)  # groups of 4, 4 and 2
    root = torch.linalg.cholesky(moment.double())  # moment = root root^T
    groups = torch.arange(10) // 4
    for row in range(4):
        basis = torch.stack([signs[p, row] * (groups == g) for p in range(2) for g in range(3)])
        target = matrix[row].double() @ root
        best = torch.linalg.lstsq((basis.double() @ root).t(), target, driver="gelsd").solution
        found = scales[:, row].flatten().double()
        errors = [
            (target - values @ basis.double() @ root).square().sum() for values in (found, best)
        ]
        assert errors[0] <= 1.001 * errors[1]


def test_scales_of_groups_without_a_sign_stay() -> None:
    signs = torch.zeros(1, 2, 8, dtype=torch.int8)
    signs[0, 0, 4:] = 1
    scales = solve_scales(torch.ones(2, 8), signs, torch.full((1, 2, 2), 3.0), 4, torch.eye(8))
    torch.testing.assert_close(scales[0, 0], torch.tensor([3.0, 1.0]), rtol=1e-3, atol=0)
    assert torch.equal(scales[0, 1], torch.tensor([3.0, 3.0]))


@pytest.mark.parametrize("with_zero", [False, True])
def test_chunks_of_rows_change_nothing(monkeypatch: pytest.MonkeyPatch, with_zero: bool) -> None:
    weight = torch.randn(9, 40, generator=torch.Generator().manual_seed(4))
    inputs = LayerInputs(moment_of(40, 5), 400)
    whole = [*fit_signs(weight, with_zero, 16, 2), *fit_signs(weight, with_zero, 16, 2, inputs)]
    monkeypatch.setattr("tauten.solvers.signs.CHUNK_WEIGHTS", 100)
    monkeypatch.setattr("tauten.solvers.signs.CHUNK_CELLS", 500)
    parts = [*fit_signs(weight, with_zero, 16, 2), *fit_signs(weight, with_zero, 16, 2, inputs)]
    for ours, theirs in zip(whole, parts, strict=True):
        assert torch.equal(ours.signs, theirs.signs)
        torch.testing.assert_close(ours.scale, theirs.scale)


@pytest.mark.parametrize("with_zero", [False, True])
def test_solving_the_scales_lowers_the_output_error(with_zero: bool) -> None:
    weight = torch.randn(8, 64, generator=torch.Generator().manual_seed(6))
    moment = moment_of(64, 7)
    (nearest,) = fit_signs(weight, with_zero, 16, 1)
    before = nearest.scale.float()[None]
    after = solve_scales(weight, nearest.signs[None], before, 16, moment)
    errors = [
        output_error(nearest.signs * scale[0].repeat_interleave(16, 1) - weight, moment)
        for scale in (before, after)
    ]
    assert bool((errors[1] < errors[0]).all())
