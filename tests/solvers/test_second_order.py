"""The second-order engine against brute force and the identities it rests on."""

import itertools

import pytest
import torch

from tauten.core.errors import NotApplicableError
from tauten.solvers.second_order import (
    corrected_target,
    curvature,
    descend,
    output_error,
    sweep,
)


def moment_of(inputs: torch.Tensor) -> torch.Tensor:
    return inputs.t() @ inputs / len(inputs)


def correlated(tokens: int, size: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(size, size, generator=generator)
    return torch.randn(tokens, size, generator=generator) @ mixing


@pytest.mark.parametrize("by_importance", [False, True])
def test_factor_is_that_of_the_damped_inverse(by_importance: bool) -> None:
    moment = moment_of(correlated(200, 12, 0))
    curve = curvature(moment, 0.01, by_importance)
    damped = moment.double() + 0.01 * float(moment.diagonal().mean()) * torch.eye(12)
    ordered = damped[curve.order][:, curve.order]
    product = curve.factor.double().t() @ curve.factor.double()
    torch.testing.assert_close(product, ordered.inverse(), rtol=1e-3, atol=1e-6)
    diagonal = moment.diagonal()[curve.order]
    assert not by_importance or bool((diagonal[:-1] >= diagonal[1:]).all())


def test_damping_grows_until_a_singular_moment_can_be_factorized() -> None:
    inputs = correlated(3, 40, 1)  # rank 3 of 40
    moment = moment_of(inputs) - 1e-4 * torch.eye(40)  # rounding can make it indefinite
    curve = curvature(moment, 1e-9, True)
    assert curve.damping > 1e-9 and bool(curve.factor.isfinite().all())


@pytest.mark.parametrize("moment", [torch.zeros(4, 4), torch.full((4, 4), torch.nan)])
def test_a_moment_that_says_nothing_is_refused(moment: torch.Tensor) -> None:
    with pytest.raises(NotApplicableError, match="zero or not finite"):
        curvature(moment, 0.01, True)


def test_columns_left_make_up_for_a_decided_one_as_least_squares_would() -> None:
    """Zero the first column only: the others must move to the least-squares optimum."""
    inputs = correlated(500, 6, 2).double()
    weight = torch.randn(4, 6, generator=torch.Generator().manual_seed(3)).double()
    moment = moment_of(inputs)
    final = sweep(
        weight, curvature(moment.float(), 1e-7, False), lambda v, i: v * 0 if i == 0 else v
    )
    rest = torch.linalg.lstsq(inputs[:, 1:], inputs @ weight.t()).solution.t()
    torch.testing.assert_close(final[:, 1:].double(), rest, rtol=1e-3, atol=1e-3)
    assert bool((final[:, 0] == 0).all())


@pytest.mark.parametrize("block", [1, 3, 64])
def test_blocks_change_the_order_of_sums_only(block: int) -> None:
    weight = torch.randn(5, 17, generator=torch.Generator().manual_seed(4))
    curve = curvature(moment_of(correlated(100, 17, 5)), 0.01, True)
    whole = sweep(weight, curve, lambda v, _: v.round(), block=17)
    torch.testing.assert_close(sweep(weight, curve, lambda v, _: v.round(), block), whole)


def test_sweep_is_near_the_best_of_all_roundings() -> None:
    """On 6 columns every combination of rounding down or up can be tried."""
    excess = []
    for seed in range(12):
        inputs = correlated(60, 6, seed)
        moment = moment_of(inputs)
        weight = torch.randn(1, 6, generator=torch.Generator().manual_seed(seed)) * 2
        steps = torch.tensor(list(itertools.product([0.0, 1.0], repeat=6)))
        best = output_error(weight.floor() + steps - weight, moment).min()
        swept = sweep(weight, curvature(moment, 1e-4, True), lambda v, _: v.round())
        nearest = output_error(weight.round() - weight, moment)
        ours = output_error(swept - weight, moment)
        excess.append([float(ours / best), float(nearest / best)])
    ours, nearest = torch.tensor(excess).log().mean(0).exp()
    assert ours < 2 and nearest > 2 * ours, "geometric mean of the excess over the optimum"


def test_descent_never_raises_a_row_and_ends_where_no_single_column_helps() -> None:
    inputs = correlated(60, 8, 12)
    moment, weight = moment_of(inputs), torch.randn(30, 8) * 2
    values, errors = weight.round(), [output_error(weight.round() - weight, moment)]
    for _ in range(20):
        values = descend(weight, values, moment, lambda v, _: v.round())
        errors.append(output_error(values - weight, moment))
    for before, after in itertools.pairwise(errors):
        assert (after <= before * (1 + 1e-4)).all()
    for column in range(8):
        for step in (-1, 1):
            moved = values.clone()
            moved[:, column] += step
            assert (output_error(moved - weight, moment) >= errors[-1] * (1 - 1e-4)).all()


def test_descent_over_blocks_uses_up_to_date_errors() -> None:
    moment, weight = moment_of(correlated(400, 150, 13)), torch.randn(3, 150) * 2
    values, plain = weight.round(), weight.round()
    ours = descend(weight, values, moment, lambda v, _: v.round())
    for column in range(150):
        slope = (plain - weight) @ moment[:, column]
        plain[:, column] = (plain[:, column] - slope / moment[column, column]).round()
    errors = [output_error(w - weight, moment).sum() for w in (ours, plain, values)]
    assert errors[0] == pytest.approx(float(errors[1]), rel=0.02) and errors[0] < errors[2]


def test_a_block_is_shown_before_it_is_decided() -> None:
    shown = []
    weight = torch.randn(3, 10, generator=torch.Generator().manual_seed(6))
    curve = curvature(moment_of(correlated(50, 10, 7)), 0.01, True)

    def prepare(columns: torch.Tensor, values: torch.Tensor, diagonal: torch.Tensor) -> None:
        shown.append((columns, values.clone(), diagonal.clone()))

    sweep(weight, curve, lambda v, _: v, 4, prepare)
    assert torch.equal(torch.cat([columns for columns, _, _ in shown]), curve.order)
    first = curve.order[:4]
    torch.testing.assert_close(shown[0][1], weight[:, first])
    torch.testing.assert_close(shown[0][2], curve.factor.diagonal()[:4])


def test_output_error_is_the_mean_square_of_the_outputs() -> None:
    inputs, change = correlated(80, 9, 8), torch.randn(4, 9)
    expected = (inputs @ change.t()).square().mean(0)
    torch.testing.assert_close(output_error(change, moment_of(inputs)), expected)


def test_corrected_target_gives_the_least_squares_outputs_on_moved_inputs() -> None:
    original = correlated(300, 8, 9).double()
    moved = original + 0.3 * correlated(300, 8, 10).double()
    weight = torch.randn(5, 8, generator=torch.Generator().manual_seed(11)).double()
    shift = (original - moved).t() @ moved / 300
    curve = curvature(moment_of(moved).float(), 1e-7, True)
    found = corrected_target(weight.float(), shift.float(), curve, 1.0)
    best = torch.linalg.lstsq(moved, original @ weight.t()).solution.t()
    torch.testing.assert_close(found.double(), best, rtol=1e-3, atol=1e-3)
    half = corrected_target(weight.float(), shift.float(), curve, 0.5)
    torch.testing.assert_close(half, (weight.float() + found) / 2, rtol=1e-4, atol=1e-5)
