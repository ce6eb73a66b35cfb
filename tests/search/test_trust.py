"""A metric must find a ruined model worse; what a user's function computes with names it."""

import importlib
import math
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import tauten
from tauten.core.errors import InputError
from tauten.evaluation.identity import identity

GENERATOR = torch.manual_seed(0)
X = torch.randn(600, 16, generator=GENERATOR)
torch.manual_seed(1)
MODEL = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 4)).eval().requires_grad_(False)
Y = MODEL(X).argmax(1)
DATA = list(zip(X.split(50), Y.split(50), strict=True))


def loss(model: nn.Module, batch: Any) -> Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")


def right(model: nn.Module, batch: Any) -> Tensor:
    return (model(batch[0]).argmax(1) == batch[1]).float()


def error(model: nn.Module, batch: Any) -> Tensor:
    return 1 - right(model, batch)


def search(metric: Any, data: Any = DATA, max_drop: float = 0.1) -> Any:
    return tauten.optimize(MODEL, data, tauten.Goal(max_drop=max_drop), metric=metric)


def of_packed_models(model: nn.Module, batch: Any) -> Tensor:
    return torch.full((len(batch[0]),), 0.1 if "Packed" in repr(model) else 1.0)


WRONG: dict[str, tuple[Any, str]] = {
    "a loss taken for a score": (loss, "scores better.*higher_is_better=False"),
    "blind": (lambda model, batch: torch.ones(len(batch[0])), "doesn't look at the model"),
    "blind noise": (
        lambda model, batch: torch.rand(len(batch[0]), generator=torch.manual_seed(0)),
        "doesn't look at the model",
    ),
    "random labels": (
        lambda model, batch: (model(batch[0]).argmax(1) == torch.arange(len(batch[0])) % 4).float(),
        "no better than chance",
    ),
    "numbers of outputs": (lambda model, batch: model(batch[0]).flatten(), "one number an example"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_metrics_are_refused(name: str) -> None:
    metric, why = WRONG[name]
    with pytest.raises(InputError, match=why):
        search(metric)


def test_an_original_that_knows_only_how_often_answers_come_is_refused() -> None:
    """Ruined copies answer otherwise, and so score worse, though the original knows nothing."""
    torch.manual_seed(2)
    shuffled = Y[torch.randperm(len(Y))]
    often = torch.where(torch.rand(len(Y)) < 0.9, 1, shuffled)
    model = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 4)).eval()
    model.requires_grad_(False)[2].bias.copy_(torch.tensor([0.0, 2.0, 0, 0]))
    model[2].weight[1].abs_()  # the second class nearly always; not so with weights displaced
    data = list(zip(X.split(50), often.split(50), strict=True))
    for metric in (None, right, tauten.Metric(loss, higher_is_better=False)):
        with pytest.raises(InputError, match="no better than chance"):
            tauten.optimize(model, data, tauten.Goal(max_drop=0.1), metric=metric)


RIGHT: dict[str, Any] = {
    "accuracy by default": None,
    "a function": right,
    "a loss that says so": tauten.Metric(loss, higher_is_better=False),
    "a negated loss": lambda model, batch: -loss(model, batch),
}


@pytest.mark.parametrize("name", RIGHT)
def test_certificates_hold_for_metrics_of_either_direction_and_sign(name: str) -> None:
    result = search(RIGHT[name])
    assert result.certified and result.test.drop.high <= 0.1
    figure = loss if "loss" in name else error
    before, after = (float(figure(m, (X, Y)).mean()) for m in (MODEL, result.model))
    allowed = 0.1 * before if "loss" in name else 0.1
    assert after - before <= 1.5 * allowed  # all data, of which the test part is a sample


@pytest.mark.parametrize("kind", ["labels off by one", "an error rate"])
def test_nothing_is_certified_by_a_score_of_0(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    shifted = [(x, y + 4) for x, y in DATA]
    metric = None if "labels" in kind else tauten.Metric(error, higher_is_better=False)
    result = search(metric, shifted if metric is None else DATA)
    assert not result.certified and result.test.drop.high == math.inf
    assert "is 0, of which no share can be lost" in caplog.text


def test_examples_of_a_group_are_one_unit_and_stay_together() -> None:
    group = torch.arange(600) // 20
    data = list(zip(X.split(50), torch.stack([Y, group], 1).split(50), strict=True))

    def by_label(model: nn.Module, batch: Any) -> Tensor:
        return (model(batch[0]).argmax(1) == batch[1][:, 0]).float()

    metric = tauten.Metric(by_label, groups=lambda batch: batch[1][:, 1])
    result = search(metric, data)
    assert result.test.drop.examples == 12  # of 30 groups, not of 600 examples


def scaled(factor: Any) -> Callable[..., Any]:
    return lambda model, batch: factor * 2


def test_identity_is_of_code_closure_defaults_and_globals() -> None:
    assert identity(scaled(2)) == identity(scaled(2))
    assert identity(scaled(torch.ones(2))) == identity(scaled(torch.ones(2)))
    assert identity(scaled(2)) != identity(scaled(3))
    assert identity(scaled(torch.ones(2))) != identity(scaled(torch.zeros(2)))
    assert identity(lambda x, y=1: x) != identity(lambda x, y=2: x)
    assert identity(lambda x: x + 1) != identity(lambda x: x + 2)

    class Weighted:
        def __init__(self, weight: float):
            self.weight = weight

        def __call__(self, model: nn.Module, batch: Any) -> float:
            return self.weight

    assert identity(Weighted(1)) == identity(Weighted(1)) != identity(Weighted(2))
    space = {"factor": 1}
    exec("def used(x):\n    return factor * x", space)
    first = identity(space["used"])
    space["factor"] = 2
    assert identity(space["used"]) != first


def test_what_python_pickles_counts_by_its_content() -> None:
    assert identity(partial(max, 1)) == identity(partial(max, 1)) != identity(partial(max, 2))
    numbers = np.arange(4)
    first = identity(scaled(numbers))
    assert first == identity(scaled(np.arange(4)))
    numbers[0] = 7
    assert first != identity(scaled(numbers))

    class Slotted:
        __slots__ = ("value",)

        def __init__(self, value: int):
            self.value = value

    assert identity(Slotted(1)) == identity(Slotted(1)) != identity(Slotted(2))


def test_functions_inside_of_functions_count_with_their_globals() -> None:
    space = {"factor": 1}
    exec("def used(xs):\n    return sum((lambda x: factor * x)(x) for x in xs)", space)
    first = identity(space["used"])
    space["factor"] = 2
    assert identity(space["used"]) != first


def test_inherited_code_and_modules_of_ones_own_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    found = []
    for number in (1, 2):
        (tmp_path / "my_scores.py").write_text(f"def score(): return {number}\n" * number)
        sys.modules.pop("my_scores", None)
        importlib.invalidate_caches()
        module = importlib.import_module("my_scores")

        class Parent:
            def __call__(self, factor: int = number) -> int:
                return factor

        class Child(Parent):
            pass

        space = {"my_scores": module}
        exec("def used(): return my_scores.score()", space)
        found.append((identity(space["used"]), identity(Child()), identity(module.score)))
    assert all(one != other for one, other in zip(*found, strict=True))


def test_what_is_ruined_is_packed_as_what_a_search_measures() -> None:
    """A metric that tells packed models from others alone is trusted, and finds all of no use."""
    result = search(of_packed_models)
    assert not result.certified and result.test.drop.value == pytest.approx(0.9)
