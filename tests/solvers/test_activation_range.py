"""Fixed steps from counts, against the values themselves."""

import pytest
import torch
from torch import Tensor

from tauten.core.errors import NotApplicableError
from tauten.solvers.activation_range import fixed_step, magnitude_values


def counts(x: Tensor) -> Tensor:
    return torch.bincount(x.bfloat16().view(torch.int16) & 0x7FFF, minlength=2**15)


def error(x: Tensor, step: float) -> float:
    return float(((x / step).round().clamp(-127, 127) * step - x).square().mean())


def heavy_tailed() -> Tensor:
    return torch.randn(20000, generator=torch.Generator().manual_seed(0)) ** 3


def test_places_count_their_own_number() -> None:
    values = magnitude_values()
    kept = values[:0x7F80:37]
    assert torch.equal(kept.bfloat16().view(torch.int16), torch.arange(0, 0x7F80, 37).short())


def test_minmax_and_percentile_are_those_of_the_values() -> None:
    x = heavy_tailed()
    assert fixed_step(counts(x), "minmax") == pytest.approx(float(x.abs().max()) / 127, rel=4e-3)
    expected = float(x.abs().quantile(0.99)) / 127
    assert fixed_step(counts(x), "percentile", 0.99) == pytest.approx(expected, rel=1e-2)
    sparse = torch.zeros(1000)
    sparse[0] = 2.0
    assert fixed_step(counts(sparse), "percentile", 0.5) == pytest.approx(2 / 127)


def test_mse_is_near_the_best_step_and_beats_the_others() -> None:
    x = heavy_tailed()
    widest = float(x.abs().max()) / 127
    best = min(error(x, widest * i / 200) for i in range(1, 201))
    found = {
        name: error(x, float(fixed_step(counts(x), name, 0.999)))
        for name in ("mse", "minmax", "percentile")
    }
    assert found["mse"] <= 1.02 * best
    assert found["mse"] < found["minmax"] and found["mse"] < found["percentile"]


@pytest.mark.parametrize("bad", [0.0, float("nan"), float("inf")])
def test_zeros_and_what_is_not_finite_are_refused(bad: float) -> None:
    with pytest.raises(NotApplicableError, match="zero or not finite"):
        fixed_step(counts(torch.tensor([bad, 0.0])), "mse")
