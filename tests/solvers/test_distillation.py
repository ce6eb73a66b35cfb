"""Losses of distillation against torch's own, in float64."""

from types import SimpleNamespace

import torch

from tauten.solvers.distillation import divergence, output_loss


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
