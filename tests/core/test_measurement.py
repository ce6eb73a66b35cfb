"""The frontier of a run, against its definition."""

import json
import random
from dataclasses import asdict

import pytest

from tauten.core.measurement import Drop, LayerRecord, Measurement, Quality, Result, Trial
from tauten.core.recipe import Recipe


def trial(size: int, drop: float) -> Trial:
    quality = Quality("accuracy", 1 - drop, 1.0, Drop(drop, drop, drop, 9), "development")
    return Trial(Recipe(()), Measurement(quality, size, size))


def result(trials: list[Trial]) -> Result:
    return Result(None, Recipe(()), False, "", trials, [], None)


@pytest.mark.parametrize("seed", range(20))
def test_frontier_is_what_no_other_trial_beats(seed: int) -> None:
    rng = random.Random(seed)
    points = {(rng.randrange(8), rng.randrange(8) / 8) for _ in range(12)}
    trials = [trial(*point) for point in points]
    trials.insert(seed % 5, Trial(Recipe(()), None, error="failed"))
    expected = sorted(
        (size, drop)
        for size, drop in points
        if not any(s <= size and d <= drop and (s, d) != (size, drop) for s, d in points)
    )
    found = [
        (t.measurement.size_bytes, t.measurement.quality.drop.value)
        for t in result(trials).frontier()
        if t.measurement
    ]
    assert found == expected


def test_a_frontier_of_failures_is_empty() -> None:
    assert result([Trial(Recipe(()), None, error="failed")]).frontier() == []


def test_records_become_plain_data() -> None:
    record = LayerRecord("a", "a", (2, 3), "integer 4 bit", 4.5, 12, 4, 0.1, "why")
    plain = asdict(record)
    assert json.loads(json.dumps(plain)) == {**vars(record), "shape": [2, 3]}
    measured = trial(5, 0.25).measurement
    assert asdict(measured)["quality"]["drop"]["high"] == 0.25
