"""Goals refuse what no model could meet, and read what people write."""

import math
from dataclasses import replace

import numpy as np
import pytest

from tauten.core.errors import GoalError
from tauten.core.goal import Goal, parse_bytes, parse_ratio, parse_seconds

LIMITS = ("max_size_bytes", "max_latency_s", "max_memory_bytes")


@pytest.mark.parametrize("field", ["max_drop", *LIMITS])
@pytest.mark.parametrize("value", [-1, -0.001, math.nan, math.inf, "two", [1], {}])
def test_a_limit_that_is_no_positive_number_is_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(GoalError, match=field):
        Goal(**{field: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("field", LIMITS)
def test_a_limit_of_zero_is_refused(field: str) -> None:
    with pytest.raises(GoalError, match=f"{field}=0"):
        Goal(**{field: 0})  # type: ignore[arg-type]


def test_a_drop_of_zero_asks_for_no_loss_at_all() -> None:
    assert Goal(max_drop=0).max_drop == 0


def test_a_drop_in_percent_is_taken_for_a_mistake() -> None:
    with pytest.raises(GoalError, match=r"write 0\.02 for 2%"):
        Goal(max_drop=10)


@pytest.mark.parametrize(
    ("text", "drop", "unit"),
    [
        ("2%", 0.02, ""),
        ("0.02", 0.02, ""),
        ("0.5 points", 0.5, "points"),
        ("1point", 1, "points"),
        ("0.02 absolute", 0.02, "absolute"),
        (" 15 absolute ", 15, "absolute"),
    ],
)
def test_a_drop_may_have_a_unit(text: str, drop: float, unit: str) -> None:
    goal = Goal(max_drop=text)
    assert (goal.max_drop, goal.drop_unit) == (drop, unit)
    assert replace(goal, minimize="latency") == Goal(drop, minimize="latency", drop_unit=unit)
    assert goal.limits == {"max_drop": drop}


@pytest.mark.parametrize("text", ["2 percent", "point", "-1 points", "0.5 Points", "5 points more"])
def test_a_drop_of_another_unit_is_refused_with_those_known(text: str) -> None:
    with pytest.raises(GoalError, match=r"max_drop=.*2% or 0\.02.*0\.5 points or 0\.02 absolute"):
        Goal(max_drop=text)
    with pytest.raises(GoalError, match="drop_unit"):
        Goal(0.5, drop_unit=text)


def test_limits_take_text_with_units() -> None:
    goal = Goal(max_size_bytes="60MB", max_latency_s="20ms", max_memory_bytes="1.5GiB")
    assert goal.limits == {
        "max_drop": 0.01,
        "max_size_bytes": 60_000_000,
        "max_latency_s": 0.02,
        "max_memory_bytes": 3 * 2**29,
    }
    with pytest.raises(GoalError, match=r"isn't a size: write 60MB or 1\.5GiB$"):
        Goal(max_size_bytes="4x")


def test_numpy_numbers_are_numbers() -> None:
    goal = Goal(max_drop=np.float32(0.5), max_size_bytes=np.int64(7))  # type: ignore[arg-type]
    assert (goal.max_drop, goal.max_size_bytes) == (0.5, 7)


def test_an_unknown_cost_is_refused_with_those_known() -> None:
    with pytest.raises(GoalError, match="size, latency, memory"):
        Goal(minimize="speed")


@pytest.mark.parametrize(
    ("text", "ratio"),
    [("2%", 0.02), ("0.02", 0.02), (" 12.5 % ", 0.125), ("1e-3", 0.001), ("5e-1%", 0.005)],
)
def test_parse_ratio(text: str, ratio: float) -> None:
    assert parse_ratio(text) == pytest.approx(ratio, rel=1e-12)


@pytest.mark.parametrize("text", ["", "%", "two", "2%%", "-2%", "2 percent", "1.2.3", ".", "2"])
def test_parse_ratio_refuses(text: str) -> None:
    with pytest.raises(GoalError):
        parse_ratio(text)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1000", 1000),
        ("1000 B", 1000),
        ("60MB", 60_000_000),
        ("60mb", 60_000_000),
        ("1.5 GiB", 1_610_612_736),
        ("2KiB", 2048),
        ("2kb", 2000),
    ],
)
def test_parse_bytes(text: str, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize(("text", "size"), [("4x", 250), ("4X", 250), ("2.5 x", 400)])
def test_a_factor_is_a_share_of_the_original(text: str, size: int) -> None:
    assert parse_bytes(text, original_bytes=1000) == size


@pytest.mark.parametrize("text", ["", "MB", "-1MB", "60 parsecs", "1.2.3MB", "0x", "0X", "4x4"])
def test_parse_bytes_refuses(text: str) -> None:
    with pytest.raises(GoalError):
        parse_bytes(text, original_bytes=1000)


def test_a_factor_of_an_unknown_original_is_refused() -> None:
    with pytest.raises(GoalError):
        parse_bytes("4x")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("20ms", 0.02),
        ("20ms/token", 0.02),
        ("20 ms / call", 0.02),
        ("0.5", 0.5),
        ("0.5s", 0.5),
        ("250us", 250e-6),
        ("10min", 600),
        ("10m", 600),
        ("2h", 7200),
    ],
)
def test_parse_seconds(text: str, seconds: float) -> None:
    assert parse_seconds(text) == pytest.approx(seconds, rel=1e-12)


@pytest.mark.parametrize("text", ["", "ms", "-1s", "20 lightyears", "20ms/page", "1..2s"])
def test_parse_seconds_refuses(text: str) -> None:
    with pytest.raises(GoalError):
        parse_seconds(text)


@pytest.mark.parametrize("field", ["max_drop", *LIMITS])
def test_true_is_no_number(field: str) -> None:
    with pytest.raises(GoalError, match=f"{field}=True"):
        Goal(**{field: True})  # type: ignore[arg-type]


def test_two_units_of_a_drop_are_refused() -> None:
    with pytest.raises(GoalError, match="max_drop is in shares, and drop_unit='points'"):
        Goal(max_drop="2%", drop_unit="points")
