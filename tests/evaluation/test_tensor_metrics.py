"""Metrics that are chosen by shapes, against loops by hand."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tauten.core.errors import InputError
from tauten.evaluation.fitting import fitting
from tauten.evaluation.tensor_metrics import Accuracy, Agreement, RSquared, Similarity

ROWS = 12
X = torch.randn(ROWS, 4, generator=torch.manual_seed(0))


class Returns(nn.Module):
    """Returns a tensor whatever it is called on."""

    def __init__(self, output: Tensor):
        super().__init__()
        self.output = output

    def forward(self, x: Tensor) -> Tensor:
        return self.output[: len(x)]


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.manual_seed(1))


CLASSES, BITS = torch.arange(ROWS) % 3, torch.arange(ROWS) % 2
PIXELS = torch.arange(ROWS * 4).view(ROWS, 2, 2) % 3
LABELS = torch.arange(ROWS * 5).view(ROWS, 5) % 2
KINDS: dict[str, tuple[Tensor, Tensor | None, type[Any]]] = {
    "classes": (noise(ROWS, 3), CLASSES, Accuracy),
    "two classes, one output": (noise(ROWS, 1), BITS, Accuracy),
    "two classes, flat": (noise(ROWS), BITS.float(), Accuracy),
    "probabilities": (noise(ROWS).sigmoid(), BITS, Accuracy),
    "several labels": (noise(ROWS, 5), LABELS.float(), Accuracy),
    "tokens": (noise(ROWS, 4, 3), PIXELS.view(ROWS, 4), Accuracy),
    "pixels": (noise(ROWS, 3, 2, 2), PIXELS, Accuracy),
    "numbers": (noise(ROWS, 2), 3 * X[:, :2], RSquared),
    "a number": (noise(ROWS, 1), X[:, 0], RSquared),
    "scores": (noise(ROWS, 1), None, Agreement),
    "flat scores": (noise(ROWS), None, Agreement),
    "embeddings": (noise(ROWS, 6), None, Similarity),
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_metric_fits_outputs_and_targets(kind: str) -> None:
    output, targets, expected = KINDS[kind]
    batch = X if targets is None else (X, targets)
    assert next(iter(fitting(batch, output).values())) is expected


@pytest.mark.parametrize("kind", [k for k, (*_, metric) in KINDS.items() if metric is Accuracy])
def test_accuracy_is_that_of_a_loop(kind: str) -> None:
    output, targets, _ = KINDS[kind]
    assert targets is not None
    expected = []
    for row, wanted in zip(output, targets, strict=True):
        if row.numel() == wanted.numel():
            bound = 0.5 if kind == "probabilities" else 0
            right = [
                (a > bound) == bool(b) for a, b in zip(row.flatten(), wanted.flatten(), strict=True)
            ]
        else:
            scores = row.reshape(3, -1).T if kind == "pixels" else row.reshape(-1, 3)
            answers = [int(s.argmax()) for s in scores]
            right = [a == b for a, b in zip(answers, wanted.flatten().tolist(), strict=True)]
        expected.append(sum(map(bool, right)) / len(right))
    metric, model = Accuracy(), Returns(output)
    metric.prepare(model, [(X, targets)])
    found = metric.scores(model, [(X, targets)])
    assert found.total.tolist() == pytest.approx(expected)


def test_ignored_targets_do_not_count() -> None:
    output, targets = noise(ROWS, 4, 3), PIXELS.view(ROWS, 4).clone()
    targets[:, 2:] = -100
    found = Accuracy().scores(Returns(output), [(X, targets)]).total
    assert torch.equal(
        found, Accuracy().scores(Returns(output[:, :2]), [(X, targets[:, :2])]).total
    )


def test_r2_is_the_variance_explained() -> None:
    targets = 3 * X[:, :2]
    metric, model = RSquared(), Returns(targets + 0.1 * noise(ROWS, 2))
    metric.prepare(model, [(X, targets)])
    value = metric.value(metric.scores(model, [(X, targets)]))
    errors = (model.output - targets).double().square().mean(0)
    assert value == pytest.approx(float(1 - (errors / targets.double().var(0)).mean()))


def test_agreement_sees_a_score_that_cosine_is_blind_to() -> None:
    original, doubled = Returns(1 + noise(ROWS, 1) / 9), Returns(2 + noise(ROWS, 1) / 3)
    agreement, cosine = Agreement(), Similarity()
    for metric in (agreement, cosine):
        metric.prepare(original, [X])
        assert metric.value(metric.scores(original, [X])) == pytest.approx(1)
    assert cosine.value(cosine.scores(doubled, [X])) == pytest.approx(1)
    assert agreement.value(agreement.scores(doubled, [X])) < 0


def test_what_is_constant_explains_nothing() -> None:
    with pytest.raises(InputError, match="the same in all examples"):
        Agreement().prepare(Returns(torch.ones(ROWS, 1)), [X])


def test_targets_of_no_kind_are_refused() -> None:
    with pytest.raises(InputError, match=r"\(12, 3\) with targets of shape \(12, 7\).*Metric"):
        fitting((X, noise(ROWS, 7)), noise(ROWS, 3))
    assert fitting((X, noise(ROWS, 7)), noise(ROWS, 3), is_named=True) == {"similarity": Similarity}
