"""What is measured, on how many units, and what is then certified."""

import logging
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tauten
from tauten.core.errors import InputError
from tauten.report.html import render_html
from tauten.search import publish

X = torch.randn(600, 16, generator=torch.manual_seed(0))
torch.manual_seed(1)
MODEL = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 4)).eval().requires_grad_(False)
Y = MODEL(X).argmax(1)
GOAL = tauten.Goal(max_drop=0.1)


class Given(nn.Module):
    """The first column of what is predicted for rows that come with a group."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = MODEL

    def forward(self, x: Tensor, group: Tensor) -> Tensor:
        return self.inner(x)[:, :1]


class Losses(nn.Module):
    """Returns nothing but losses."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 2))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        y = self.inner(x)
        told = x.sum(1), x[:, 0]
        return {str(i): (y[:, i] - told[i]).square().mean() for i in range(2)}


def right(model: nn.Module, batch: Any) -> Tensor:
    return (model(batch[0]).argmax(1) == batch[1]).float()


def wrong(model: nn.Module, batch: Any) -> Tensor:
    return 1 - right(model, batch)


def line(caplog: pytest.LogCaptureFixture) -> str:
    """What is said of quality before the search."""
    return next(r.getMessage() for r in caplog.records if r.getMessage().startswith("quality is"))


@pytest.fixture(autouse=True)
def said(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "tauten")


def test_the_choice_is_said_in_a_line_before_the_first_trial(
    caplog: pytest.LogCaptureFixture,
) -> None:
    result = tauten.optimize(MODEL, [(X, Y)], GOAL)
    messages = [record.getMessage() for record in caplog.records]
    assert messages.index(line(caplog)) < next(
        i for i, message in enumerate(messages) if message.startswith("trial 1")
    )
    assert "accuracy (share of right answers), higher is better" in line(caplog)
    assert "1.00 on 240 independent examples" in line(caplog) and "same on each" in line(caplog)
    assert result.certified and "certified on 240 independent examples" in result.reason


def test_a_model_of_losses_is_measured_by_them() -> None:
    torch.manual_seed(0)
    model = Losses()
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(60):
        optimizer.zero_grad()
        sum(model(X).values()).backward()  # type: ignore[union-attr]
        optimizer.step()
    result = tauten.optimize(model.eval().requires_grad_(False), [X], GOAL)
    assert result.certified and result.test.metric == "loss" and "rise" in result.test.told
    before, after = (sum(map(float, m(X).values())) for m in (model, result.model))
    assert after <= 1.15 * before


def test_a_number_a_batch_is_one_unit(caplog: pytest.LogCaptureFixture) -> None:
    result = tauten.optimize(
        MODEL, [(X, Y)], GOAL, metric=lambda model, batch: right(model, batch).mean()
    )
    assert result.test.counted == "batch" and result.test.drop.examples == 4
    assert line(caplog).endswith("4 independent batches: too few for a certificate")
    assert not result.certified and "4 batches in a split are too few" in result.reason


def test_a_goal_that_a_ruined_model_keeps_certifies_nothing() -> None:
    result = tauten.optimize(MODEL, [(X, Y)], tauten.Goal(max_drop=0.95), metric=right)
    assert not result.certified and "all weights changed places" in result.reason


def test_errors_of_an_original_without_any_are_limited_in_points() -> None:
    metric = tauten.Metric(wrong, higher_is_better=False)
    result = tauten.optimize(MODEL, [(X, Y)], tauten.Goal(max_drop="6 points"), metric=metric)
    assert result.certified and 0 < result.test.drop.high <= 6
    assert result.test.drop.unit == "points"
    assert float(wrong(result.model, (X, Y)).mean()) <= 0.06
    missed = [trial.verdict for trial in result.trials if "rise" in trial.verdict]
    assert missed and all("points" in verdict for verdict in missed)


def test_repeated_examples_count_once(caplog: pytest.LogCaptureFixture) -> None:
    result = tauten.optimize(MODEL, [(X[:30], Y[:30])] * 20, tauten.Goal(max_drop=0.5))
    assert "570 examples left out" in caplog.text
    assert result.test.drop.examples == 12
    with pytest.raises(InputError, match="too few"):
        tauten.optimize(MODEL, [(X[:9], Y[:9])] * 99, GOAL)


GROUP = torch.arange(600) // 20


def test_a_metric_of_ours_is_joined_by_groups() -> None:
    data = [({"x": X, "group": GROUP}, (MODEL(X)[:, 0] > 0).long())]
    metric = tauten.Metric("accuracy", groups=lambda batch: batch[0]["group"])
    result = tauten.optimize(Given().eval(), data, tauten.Goal(max_drop=0.3), metric=metric)
    assert (result.test.drop.examples, result.test.counted) == (12, "group")
    assert result.test.original == 1


def test_rerankers_are_measured_by_query() -> None:
    metric = tauten.Metric("rank_correlation", groups=lambda batch: batch["group"])
    result = tauten.optimize(Given().eval(), [{"x": X, "group": GROUP}], GOAL, metric=metric)
    assert result.test.drop.examples == 12 and result.test.original == pytest.approx(1)
    assert result.certified and result.test.metric == "rank_correlation"


def test_a_named_metric_that_does_not_serve_is_refused() -> None:
    metric = tauten.Metric("perplexity", groups=lambda batch: torch.arange(len(batch[1])))
    with pytest.raises(InputError, match=r"'perplexity' doesn't serve.*accuracy"):
        tauten.optimize(MODEL, [(X, Y)], GOAL, metric=metric)
    with pytest.raises(InputError, match="direction and a name of its own"):
        tauten.Metric("accuracy", higher_is_better=False)


@pytest.mark.parametrize(
    ("metric", "max_drop", "words"),
    [
        (right, 0.1, ("Let right fall by at most 10%", "Drop in right", ">Drop<")),
        (
            tauten.Metric(wrong, higher_is_better=False),
            "6 points",
            ("Let wrong rise by at most 6 points", "Rise of wrong", ">Rise<", "6 points"),
        ),
    ],
)
def test_reports_name_what_fell_or_rose(
    metric: Any, max_drop: Any, words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[dict[str, Any]] = []
    make = publish.make_manifest
    monkeypatch.setattr(publish, "make_manifest", lambda *a: made.append(make(*a)) or made[-1])
    tauten.optimize(MODEL, [(X, Y)], tauten.Goal(max_drop=max_drop), metric=metric)
    page = render_html(made[0], {})
    assert all(word in page for word in words), words
    assert "240 examples" in page and math.isfinite(made[0]["test"]["drop"]["high"])
