"""Bounds that hold as often as they say, on data whose truth is known."""

import math

import pytest
import torch
from scipy import stats

from tauten.core.measurement import Drop
from tauten.evaluation.statistics import (
    linear_drop,
    log_drop,
    more_examples,
    ratio_interval,
    shared_confidence,
)

SIMULATIONS = 1000


def coverage(highs: list[float], truth: float) -> float:
    return sum(high >= truth for high in highs) / len(highs)


def test_with_equal_weights_it_is_the_t_interval_of_the_mean() -> None:
    values = torch.randn(30, generator=torch.Generator().manual_seed(0)).double()
    ratio, low, high = ratio_interval(values, torch.ones(30))
    standard_error = float(values.std()) / math.sqrt(30)
    expected = stats.t.interval(0.9, 29, loc=float(values.mean()), scale=standard_error)
    assert (low, high) == pytest.approx(expected, rel=1e-12)
    assert ratio == pytest.approx(float(values.mean()), rel=1e-12)


def test_with_unequal_weights_it_agrees_with_the_bootstrap() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.rand(200, generator=generator).double() * 400 + 20
    total = weight * (0.5 + 0.2 * torch.randn(200, generator=generator).double())
    draws = torch.randint(0, 200, (4000, 200), generator=generator)
    ratios = total[draws].sum(1) / weight[draws].sum(1)
    _, low, high = ratio_interval(total, weight)
    expected = torch.quantile(ratios, torch.tensor([0.05, 0.95]).double())
    assert torch.allclose(torch.tensor([low, high]).double(), expected, atol=0.003)


@pytest.mark.parametrize("examples", [5, 20, 100])
def test_a_bound_on_a_ratio_holds_as_often_as_it_says(examples: int) -> None:
    generator = torch.Generator().manual_seed(examples)
    ends = []
    for _ in range(SIMULATIONS):
        weight = torch.randint(50, 500, (examples,), generator=generator).double()
        noise = torch.randn(examples, generator=generator).double() * weight.sqrt()
        ends.append(ratio_interval(0.02 * weight + noise, weight))
    assert 0.93 <= coverage([high for _, _, high in ends], 0.02) <= 0.98
    assert 0.93 <= sum(low <= 0.02 for _, low, _ in ends) / SIMULATIONS <= 0.98


def test_a_bound_on_perplexity_holds_as_often_as_it_says() -> None:
    generator = torch.Generator().manual_seed(0)
    highs = []
    for _ in range(SIMULATIONS):
        weight = torch.randint(50, 500, (40,), generator=generator).double()
        original = weight * (3 + torch.randn(40, generator=generator).double())
        # Each document is 1.5% worse on average: ln 1.015 a token.
        rise = math.log(1.015) + 0.01 * torch.randn(40, generator=generator).double()
        highs.append(log_drop(original, original + weight * rise, weight).high)
    assert 0.93 <= coverage(highs, 0.015) <= 0.98


@pytest.mark.parametrize(
    ("lost", "gained"),
    [(0.002, 0), (0.01, 0.01), (0.02, 0), (0.02, 0.02), (0.1, 0.05), (0.0, 0.01)],
)
@pytest.mark.parametrize("examples", [50, 200])
def test_a_bound_on_accuracy_holds_however_rare_disagreements_are(
    lost: float, gained: float, examples: int
) -> None:
    """Of all examples 0.8 are right before; `lost` turn wrong and `gained` turn right."""
    generator = torch.Generator().manual_seed(examples)
    highs, one = [], torch.ones(examples)
    for _ in range(SIMULATIONS):
        u = torch.rand(examples, generator=generator)
        original = (u < 0.8).float()
        candidate = ((u >= lost) & (u < 0.8) | (u > 1 - gained)).float()
        highs.append(linear_drop(original, candidate, one, True).high)
    assert coverage(highs, (lost - gained) / 0.8) >= 0.94


@pytest.mark.parametrize("examples", [10, 60, 299])
def test_no_disagreement_is_bounded_by_the_rule_of_three(examples: int) -> None:
    right = torch.ones(examples)
    drop = linear_drop(right, right, right, True)
    assert drop.value == 0
    assert drop.high == pytest.approx(1 - 0.05 ** (1 / examples), rel=1e-9)
    assert drop.high == pytest.approx(3 / examples, rel=0.15)


def test_no_disagreement_among_few_right_answers_says_less() -> None:
    original = torch.tensor([1.0] * 20 + [0.0] * 80)
    drop = linear_drop(original, original, torch.ones(100), True)
    assert drop.high == pytest.approx((1 - 0.05 ** (1 / 100)) / 0.2, rel=1e-9)


def test_everything_lost_is_a_drop_of_one() -> None:
    one = torch.ones(20)
    assert linear_drop(one, 0 * one, one, True).high >= 1


@pytest.mark.parametrize(("higher", "expected"), [(True, 0.25), (False, -0.25)])
def test_direction_of_a_score(higher: bool, expected: float) -> None:
    original, candidate = torch.full((9,), 4.0), torch.full((9,), 3.0)
    drop = linear_drop(original, candidate, torch.ones(9), higher)
    assert (drop.value, drop.examples) == (pytest.approx(expected), 9)
    assert drop.low <= drop.value <= drop.high


def test_a_score_of_zero_gives_its_loss_in_absolute_terms() -> None:
    zero, one = torch.zeros(10), torch.ones(10)
    assert linear_drop(zero, zero, one, True).value == 0
    assert linear_drop(zero, zero - 0.5, one, True).value == pytest.approx(0.5)


def test_log_drop_is_the_relative_rise_of_perplexity() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randint(10, 90, (25,), generator=generator).double()
    original = torch.rand(25, generator=generator).double() * weight * 4
    candidate = original + torch.randn(25, generator=generator).double()
    before, after = (math.exp(float(x.sum() / weight.sum())) for x in (original, candidate))
    drop = log_drop(original, candidate, weight)
    assert drop.value == pytest.approx(after / before - 1, rel=1e-9)
    assert drop.low < drop.value < drop.high


@pytest.mark.parametrize(("unit", "scale"), [("absolute", 1), ("points", 100)])
def test_drops_with_a_unit_are_differences(unit: str, scale: int) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randint(10, 90, (25,), generator=generator).double()
    original = torch.rand(25, generator=generator).double() * weight * 4
    candidate = original + weight * 0.1 + torch.randn(25, generator=generator).double()
    means = [float(x.sum() / weight.sum()) for x in (original, candidate)]
    drop = log_drop(original, candidate, weight, unit=unit)
    assert drop.value == pytest.approx(scale * (math.exp(means[1]) - math.exp(means[0])))
    assert drop.low < drop.value < drop.high and drop.unit == unit
    for higher in (True, False):
        drop = linear_drop(original, candidate, weight, higher, unit=unit)
        sign = -1 if higher else 1
        assert drop.value == pytest.approx(scale * sign * (means[1] - means[0]))
        assert drop.low < drop.value < drop.high


def test_an_absolute_rise_of_perplexity_is_bounded_as_the_bootstrap_says() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randint(50, 500, (200,), generator=generator).double()
    original = weight * (3 + 0.5 * torch.randn(200, generator=generator).double())
    candidate = original + weight * (0.1 + 0.05 * torch.randn(200, generator=generator).double())
    draws = torch.randint(0, 200, (4000, 200), generator=generator)
    held = weight[draws].sum(1)
    before, after = ((x[draws].sum(1) / held).exp() for x in (original, candidate))
    expected = torch.quantile(after - before, torch.tensor([0.05, 0.95]).double())
    drop = log_drop(original, candidate, weight, unit="absolute")
    assert [drop.low, drop.high] == pytest.approx(expected.tolist(), rel=0.03)


def test_no_error_at_all_can_rise_by_so_many_points() -> None:
    """Of an original without errors a share can't be told, but a difference can."""
    zero = torch.zeros(100)
    assert linear_drop(zero, zero, torch.ones(100), False).high == math.inf
    drop = linear_drop(zero, zero, torch.ones(100), False, unit="points")
    assert (drop.value, drop.high) == (0, pytest.approx(100 * (1 - 0.05 ** (1 / 100))))


@pytest.mark.parametrize("rate", [0.005, 0.01, 0.03, 0.1])
def test_a_bound_on_rare_losses_of_graded_scores_holds(rate: float) -> None:
    """Scores of three grades, all at their top before; few examples lose one or two of them."""
    generator, highs = torch.Generator().manual_seed(0), []
    one = torch.ones(60)
    for _ in range(SIMULATIONS):
        loses = torch.rand(60, generator=generator) < rate
        grades = torch.randint(1, 3, (60,), generator=generator) / 2
        highs.append(linear_drop(one, one - loses * grades, one, True).high)
    assert coverage(highs, 0.75 * rate) >= 0.94


def test_pairing_removes_what_both_models_find_hard() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.full((50,), 100.0)
    original = weight * (3 + torch.randn(50, generator=generator))
    assert log_drop(original, original + weight * 0.01, weight).high == pytest.approx(
        math.expm1(0.01), rel=1e-6
    )


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_a_broken_model_is_within_no_limit(broken: float) -> None:
    weight = torch.full((5,), 10.0)
    candidate = torch.full((5,), 20.0)
    candidate[2] = broken
    assert log_drop(weight, candidate, weight).high == math.inf


def test_one_example_bounds_nothing() -> None:
    one = torch.ones(1)
    assert log_drop(one, one, one).high == math.inf
    assert ratio_interval(one, one) == (1.0, -math.inf, math.inf)


def test_the_bounds_of_many_looks_hold_together() -> None:
    """The best of several that are all as bad is seldom taken for better than it is."""
    generator, looks = torch.Generator().manual_seed(0), 8
    wrong = 0
    for _ in range(SIMULATIONS):
        weight = torch.randint(50, 500, (40,), generator=generator).double()
        noise = torch.randn(looks, 40, generator=generator).double() * weight.sqrt()
        confidence = shared_confidence(looks)
        highs = [ratio_interval(0.02 * weight + n, weight, confidence)[2] for n in noise]
        wrong += min(highs) < 0.02
    assert wrong / SIMULATIONS <= 0.065  # 0.05, and two standard errors


def test_documents_that_are_needed_bring_the_bound_down_to_the_limit() -> None:
    rise = 0.01 + 0.05 * torch.randn(30, generator=torch.Generator().manual_seed(3)).double()

    def drop(times: int) -> Drop:
        """As many documents more, spread alike."""
        moved, one = rise.repeat(times), torch.ones(30 * times)
        return log_drop(one, one + moved, one)

    limit = 1.5 * drop(1).value
    assert drop(1).value < limit < drop(1).high
    needed = more_examples(drop(1), limit)
    assert needed is not None
    times = math.ceil((30 + needed) / 30)
    assert times > 4
    assert drop(times).high <= limit < drop(times // 2).high
    assert more_examples(drop(times), limit) == 0
    assert more_examples(drop(1), 0.9 * drop(1).value) is None, "no number changes the estimate"
    one = torch.ones(1)
    assert more_examples(log_drop(one, one, one), limit) is None
