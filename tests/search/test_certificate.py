"""What a run says of its choice: what was proved, what is missing, what would be enough."""

import itertools
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import tauten
from tauten.core.errors import GoalError
from tauten.core.goal import Goal
from tauten.core.measurement import Drop, Measurement, Quality, Trial
from tauten.core.recipe import Recipe
from tauten.search.certificate import conclude, documents_needed, relaxations
from tauten.search.work import Work


def measured(size_bytes: int, high: float) -> Measurement:
    drop = Drop(high / 2, 0.0, high, 20)
    return Measurement(Quality("perplexity", 1.0, 1.0, drop, "development"), size_bytes, size_bytes)


def test_each_limit_gives_way_to_the_nearest_recipe_within_the_others() -> None:
    tried = [measured(100, 0.2), measured(200, 0.034567), measured(300, 0.008)]
    goal = Goal(max_drop=0.01, max_size_bytes=250)
    said = relaxations(goal, tried)
    assert said == "; max_drop=0.03457 or max_size_bytes=300 would be met"
    for met in (Goal(max_drop=0.03457, max_size_bytes=250), Goal(0.01, 300)):
        assert any(all(m.cost(n) <= limit for n, limit in met.limits.items()) for m in tried)


def test_where_no_single_limit_is_enough_none_is_named() -> None:
    goal = Goal(max_drop=0.01, max_size_bytes=50, max_memory_bytes=50)
    assert relaxations(goal, [measured(100, 0.2)]) == ""


def test_missing_documents_are_counted_only_where_they_help() -> None:
    assert "it needs 60 more documents" in documents_needed(Drop(0.01, 0.0, 0.03, 20), 0.02)
    assert documents_needed(Drop(0.03, 0.0, 0.04, 20), 0.02) == ""
    assert documents_needed(Drop(0.01, 0.0, 0.015, 20), 0.02) == ""


@pytest.mark.parametrize(
    ("high", "said"),
    [
        (0.019, "least size of the 1 recipes within the goal, of 1 tried"),
        (0.03, "on the sealed test split the drop may be 3.00%, above 2.00%; it needs 36 more"),
    ],
)
def test_the_test_split_decides_on_the_certificate(high: float, said: str) -> None:
    found = measured(100, 0.018)
    test = replace(found.quality, drop=Drop(0.005, 0.0, high, 20), split="test")
    trial = Trial(Recipe.of(tauten.Int8()), found)
    search: Any = SimpleNamespace(
        trials=[trial],
        goal=Goal(max_drop=0.02),
        verdict=lambda measurement: "",
        evaluator=SimpleNamespace(certify=lambda candidate: test, ruined=math.inf),
    )
    result = conclude(search, 0, SimpleNamespace(layers=[]), False)  # type: ignore[arg-type]
    assert result.certified == (high <= 0.02)
    assert said in result.reason
    assert ("not certified" in result.reason) != result.certified


def test_a_time_too_short_for_one_recipe_is_refused_with_the_least(
    sensitive_folder: Path, texts: list[str], tmp_path: Path
) -> None:
    with pytest.raises(GoalError, match=r"max_time_s=0: one recipe alone takes about \d+ s"):
        tauten.optimize(sensitive_folder, texts, out=tmp_path / "out", max_time_s=1e-9)
    assert not list(tmp_path.iterdir())


def test_when_time_is_up_the_best_so_far_is_the_answer(
    strict_run: Any, sensitive_folder: Path, texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each trial seems to take half an hour, which the certificate leaves less for."""
    goal, many = Goal(max_drop=0.001), strict_run.result
    clock = itertools.count(0.0, 1800.0)
    monkeypatch.setattr("tauten.search.trials.monotonic", lambda: next(clock))

    def within(closing_s: float) -> Any:
        monkeypatch.setattr(Work, "closing_s", closing_s)
        return tauten.optimize(sensitive_folder, texts, goal, max_tokens=1500, max_time_s=9000.0)

    few, fewer = within(0.0), within(4000.0)
    assert 1 <= len(fewer.trials) < len(few.trials) < len(many.trials)
    assert few.model is not None and few.test is not None
