"""Compensation against least squares on the samples themselves."""

import pytest
import torch

from tauten.core.errors import NotApplicableError
from tauten.solvers.compensation import compensated, with_constant


def samples() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    mixed = torch.randn(400, 12, generator=generator, dtype=torch.float64)
    mixing = torch.randn(12, 12, generator=generator, dtype=torch.float64)
    return mixed @ mixing + torch.arange(12)


def test_equals_least_squares_on_samples() -> None:
    x = samples()
    weight = torch.randn(5, 12, generator=torch.manual_seed(1), dtype=torch.float64)
    kept = torch.arange(12) % 3 != 1
    found = compensated(weight, x.t() @ x / len(x), kept, 1e-12)
    exact = torch.linalg.lstsq(x[:, kept], x @ weight.t()).solution.t()
    torch.testing.assert_close(found[:, kept].double(), exact, rtol=1e-5, atol=1e-5)
    assert not found[:, ~kept].any()


def test_a_bias_takes_the_constant_part() -> None:
    x = samples()
    weight = torch.randn(5, 12, generator=torch.manual_seed(1), dtype=torch.float64)
    kept = torch.arange(12) < 7
    moment = with_constant(x.t() @ x / len(x), x.mean(0))
    wide = torch.cat([weight, torch.zeros(5, 1)], 1)
    found = compensated(wide, moment, torch.cat([kept, torch.tensor([True])]), 1e-12)
    ones = torch.ones(len(x), 1, dtype=torch.float64)
    exact = torch.linalg.lstsq(torch.cat([x[:, kept], ones], 1), x @ weight.t()).solution.t()
    close = {"rtol": 1e-4, "atol": 1e-4}
    torch.testing.assert_close(found[:, :-1][:, kept].double(), exact[:, :-1], **close)
    torch.testing.assert_close(found[:, -1].double(), exact[:, -1], **close)


def test_nothing_is_known_of_dead_inputs() -> None:
    with pytest.raises(NotApplicableError, match="can't be factorized"):
        compensated(torch.ones(2, 3), torch.full((3, 3), torch.nan), torch.arange(3) > 0, 0.01)
