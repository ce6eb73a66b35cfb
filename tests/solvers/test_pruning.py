"""Masks of least output error by brute force, and kept weights by least squares in float64."""

from itertools import combinations

import pytest
import torch
from layer_inputs import layer_inputs
from torch import Tensor

from tauten.core.errors import NotApplicableError
from tauten.solvers.pruning import (
    SweepMask,
    alternate_mask,
    keep_largest,
    pack_floats,
    refit_kept,
)
from tauten.solvers.second_order import curvature, damped, output_error, sweep


def weight_of(rows: int, columns: int) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(rows))


def fitted_exactly(weight: Tensor, moment: Tensor, mask: Tensor) -> Tensor:
    """Each row by least squares in float64: the root of H turns d H d^T into a plain norm."""
    root = torch.linalg.cholesky(moment.double()).t()
    fitted = torch.zeros_like(weight, dtype=torch.float64)
    for row, kept, target in zip(fitted, mask, weight.double(), strict=True):
        row[kept] = torch.linalg.lstsq(root[:, kept], root @ target).solution
    return fitted


def error(values: Tensor, weight: Tensor, moment: Tensor) -> float:
    return float(output_error(values.double() - weight.double(), moment.double()).sum())


def test_refit_is_least_squares() -> None:
    weight, moment = weight_of(20, 48), layer_inputs(48, 1).moment
    mask = keep_largest(weight.abs(), 0.5, "unstructured")
    exact = fitted_exactly(weight, moment, mask)
    found = refit_kept(weight, moment, weight * mask, mask)
    assert not found[~mask].any()
    assert error(found, weight, moment) <= 1.001 * error(exact, weight, moment)
    assert error(found, weight, moment) < 0.8 * error(weight * mask, weight, moment)


def test_alternated_masks_are_near_the_best_of_all() -> None:
    weight, moment = weight_of(5, 8), damped(layer_inputs(8, 2).moment, 0.01)
    mask, values = alternate_mask(weight, moment, 0.5, "unstructured", 10)
    assert int(mask.sum()) == 20 and not values[~mask].any()
    counts, best = mask.sum(1).tolist(), 0.0
    for row, kept in zip(weight, counts, strict=True):
        best += min(
            error(fitted_exactly(row[None], moment, marked[None]), row[None], moment)
            for marked in _masks(8, kept)
        )
    wanda = keep_largest(weight.abs() * moment.diagonal().sqrt(), 0.5, "unstructured")
    rival = error(fitted_exactly(weight, moment, wanda), weight, moment)
    ours = error(fitted_exactly(weight, moment, mask), weight, moment)
    assert ours <= 1.2 * best and ours < 0.8 * rival


def _masks(columns: int, kept: int) -> list[Tensor]:
    found = []
    for chosen in combinations(range(columns), kept):
        mask = torch.zeros(columns, dtype=torch.bool)
        mask[list(chosen)] = True
        found.append(mask)
    return found


def test_the_sweep_zeroes_what_costs_least() -> None:
    """One zero in a row: all columns but it are free, as if it were decided before them."""
    moment = layer_inputs(8, 3).moment
    for row in weight_of(6, 8):
        costs = []
        for column in range(8):
            mask = torch.ones(1, 8, dtype=torch.bool)
            mask[0, column] = False
            costs.append(error(fitted_exactly(row[None], moment, mask), row[None], moment))
        saliency = row.double().square() / torch.linalg.inv(moment.double()).diagonal()
        assert torch.allclose(saliency, torch.tensor(costs, dtype=torch.float64), rtol=1e-4)
        marks = SweepMask(torch.Size((1, 8)), 1 / 8, "unstructured")
        root = torch.linalg.inv(moment.double()).diagonal().sqrt()
        marks.prepare(torch.arange(8), row[None].double(), root)
        assert int((~marks.mask).nonzero()[0, 1]) == int(torch.tensor(costs).argmin())


@pytest.mark.parametrize("pattern", ["unstructured", "2:4"])
def test_each_step_up_is_nearer_to_the_outputs(pattern: str) -> None:
    weight, moment = weight_of(48, 128), layer_inputs(128, 4).moment
    curve = curvature(moment, 0.01, by_importance=False)
    marks = SweepMask(weight.shape, 0.5, pattern)
    swept = sweep(weight, curve, lambda v, j: v * marks.mask[:, j], 128, marks.prepare)
    magnitude = weight * keep_largest(weight.abs(), 0.5, pattern)
    saliency = weight.abs() * moment.diagonal().sqrt()
    wanda = weight * keep_largest(saliency, 0.5, pattern, by_row=True)
    _, ours = alternate_mask(weight, damped(moment, 0.01), 0.5, pattern, 5)
    errors = [error(values, weight, moment) for values in (ours, swept, wanda, magnitude)]
    assert errors[0] < 0.9 * errors[1] and errors[1] < min(errors[2:])
    assert all(int((v == 0).sum()) == weight.numel() // 2 for v in (ours, swept, wanda))


def test_masks_keep_their_counts() -> None:
    saliency = weight_of(6, 20).abs()
    rows = keep_largest(saliency, 0.3, "unstructured", by_row=True)
    assert rows.sum(1).tolist() == [14] * 6
    assert int(keep_largest(saliency, 0.3, "unstructured").sum()) == 84
    fours = keep_largest(saliency, 0.5, "2:4").view(6, 5, 4)
    assert (fours.sum(2) == 2).all()
    kept = saliency.view(6, 5, 4).where(fours, torch.inf).amin(2)
    assert (kept >= saliency.view(6, 5, 4).where(~fours, -torch.inf).amax(2)).all()


def test_what_cannot_be_pruned_is_refused() -> None:
    with pytest.raises(NotApplicableError, match="multiple of 4"):
        keep_largest(torch.ones(2, 6), 0.5, "2:4")
    with pytest.raises(NotApplicableError, match="leaves nothing"):
        keep_largest(torch.ones(4, 6), 0.99, "unstructured")


@pytest.mark.parametrize(
    ("dtype", "size", "stored"),
    [
        (torch.float32, 1.0, torch.float16),
        (torch.float32, 1e6, torch.float32),
        (torch.float32, 1e-7, torch.float32),
        (torch.bfloat16, 1e6, torch.bfloat16),
        (torch.float16, 1.0, torch.float16),
        (torch.float64, 1.0, torch.float16),
    ],
)
def test_floats_are_stored_in_16_bits_that_hold_them(dtype, size: float, stored) -> None:
    weight = (weight_of(4, 16) * size).to(dtype)
    mask = keep_largest(weight.abs(), 0.5, "unstructured")
    packed = pack_floats(weight.float(), mask, weight)
    assert packed.values.dtype is stored
    change = packed.dequantize().double() - weight.double() * mask
    assert change.norm() <= 2**-10 * weight.double().norm()
