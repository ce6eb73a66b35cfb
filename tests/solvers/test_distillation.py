"""Losses of distillation against torch's own, in float64."""

from types import SimpleNamespace

import pytest
import torch

from tauten.solvers.distillation import (
    divergence,
    output_loss,
    relative_error,
    top_classes,
    top_divergence,
)


def test_divergence_is_the_kl_of_torch_whatever_the_chunk() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, wanted = torch.randn(2, 37, 11, generator=generator).unbind()
    expected = torch.nn.functional.kl_div(
        logits.double().log_softmax(-1),
        wanted.double().log_softmax(-1),
        reduction="batchmean",
        log_target=True,
    )
    for chunk in (1, 16, 64):
        found = divergence(logits.requires_grad_(), wanted, chunk)
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-7)
    (slope,) = torch.autograd.grad(found, logits)
    torch.testing.assert_close(slope, (logits.softmax(-1) - wanted.softmax(-1)) / 37)


def test_padding_of_logits_does_not_count() -> None:
    logits, wanted = torch.randn(2, 2, 5, 7, generator=torch.Generator().manual_seed(1)).unbind()
    mask = torch.tensor([[True] * 5, [True, True, False, False, False]])
    found = output_loss(SimpleNamespace(logits=logits), SimpleNamespace(logits=wanted), mask)
    logits[1, 2:] = 100.0
    again = output_loss(SimpleNamespace(logits=logits), SimpleNamespace(logits=wanted), mask)
    assert torch.equal(found, again) and found > 0


def test_other_outputs_are_compared_by_relative_squared_error() -> None:
    output, target = torch.randn(2, 4, 6, generator=torch.Generator().manual_seed(2)).unbind()
    expected = (output - target).square().sum() / target.square().sum()
    torch.testing.assert_close(output_loss(output, target, None), expected)
    torch.testing.assert_close(output_loss({"a": output}, {"a": target}, None), expected)
    assert output_loss((target, target), (target, target), None) == 0


def exact(logits: torch.Tensor, wanted: torch.Tensor, skew: float = 0.0) -> torch.Tensor:
    """Mean KL(p || skew p + (1 - skew) q) as its definition says, float64."""
    p, q = wanted.double().softmax(-1), logits.double().softmax(-1)
    return (p * (p.log() - (skew * p + (1 - skew) * q).log())).sum(-1).mean()


@pytest.mark.parametrize("skew", [0.0, 0.1])
@pytest.mark.parametrize("chunk", [1, 16, 64])
def test_with_all_classes_kept_the_divergence_is_exact(skew: float, chunk: int) -> None:
    generator = torch.Generator().manual_seed(3)
    logits, wanted = (3 * torch.randn(2, 37, 11, generator=generator)).unbind()
    for count in (10, 11, 64):  # one class is all others; more than there are is all
        kept = top_classes(wanted, count)
        found = top_divergence(logits.requires_grad_(), *kept, skew, chunk)
        torch.testing.assert_close(found.double(), exact(logits, wanted, skew), rtol=1e-5, atol=0)
        (slope,) = torch.autograd.grad(found, logits)
        (expected,) = torch.autograd.grad(exact(logits, wanted, skew), logits)
        torch.testing.assert_close(slope, expected, rtol=1e-4, atol=1e-7)


def test_other_classes_count_as_one() -> None:
    generator = torch.Generator().manual_seed(4)
    logits, wanted = torch.randn(2, 9, 30, generator=generator, dtype=torch.float64).unbind()
    indices, log_probabilities = top_classes(wanted, 5)
    merged = []
    for x in (logits, wanted):
        p = x.softmax(-1)
        top = p.gather(1, indices)
        merged.append(torch.cat([top, 1 - top.sum(1, keepdim=True)], 1))
    q, p = merged
    torch.testing.assert_close(log_probabilities.double(), p.log(), rtol=1e-5, atol=1e-5)
    expected = (p * (p.log() - q.log())).sum(1).mean()
    found = top_divergence(logits, indices, log_probabilities)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-7)
    assert 0 < found < exact(logits, wanted)


def test_the_slopes_of_a_cut_divergence_are_those_of_differences() -> None:
    generator = torch.Generator().manual_seed(5)
    logits, wanted = torch.randn(2, 3, 8, generator=generator, dtype=torch.float64).unbind()
    kept = top_classes(wanted, 3)
    (slope,) = torch.autograd.grad(top_divergence(logits.requires_grad_(), *kept, 0.1), logits)
    step = 1e-2  # the loss itself is float32
    for place in ((0, 0), (1, 4), (2, 7)):
        ends = []
        for sign in (1, -1):
            moved = logits.detach().clone()
            moved[place] += sign * step
            ends.append(float(top_divergence(moved, *kept, 0.1)))
        assert abs((ends[0] - ends[1]) / (2 * step) - float(slope[place])) < 1e-4


def test_relative_error_of_the_mean_is_one_and_of_equality_none() -> None:
    wanted = torch.randn(50, 6, generator=torch.Generator().manual_seed(6)) + 5
    assert relative_error(wanted, wanted) == 0
    mean = wanted.mean(0).expand_as(wanted)
    torch.testing.assert_close(relative_error(mean, wanted), torch.tensor(1.0))
    constant = torch.ones(4, 3)
    assert relative_error(constant, constant) == 0
    one = torch.tensor([[3.0, 4.0]])
    torch.testing.assert_close(relative_error(one + 5, one), torch.tensor(2.0))
