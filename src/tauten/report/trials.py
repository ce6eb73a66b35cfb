"""What was tried, as rows that the reports show."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tauten.core.figures import format_change, format_loss, is_number


@dataclass(frozen=True)
class TrialRow:
    """One trial. Figures are None where nothing was measured.

    Attributes:
        number: From 1, as the plot and the tables name it.
        state: `chosen`, or `nearest` if it was chosen though it misses the goal; `within` or
            `missed` for the others; `plain` without a goal; `failed` without a measurement.
        frontier: No other trial is both smaller and better.
        speed: Beside the original of the same run, such as `1.3x slower`; empty if not timed.
        outcome: Verdict, or the error.
        unit: Of the drop, as `Goal.drop_unit`.
    """

    number: int
    label: str
    state: str
    frontier: bool
    size_bytes: int | None
    drop: float | None
    low: float | None
    high: float | None
    kl: float | None
    predicted_kl: float | None
    latency_s: float | None
    speed: str
    outcome: str
    unit: str = ""

    @property
    def interval(self) -> str:
        """Of the drop: each end is a bound by itself, and those of all trials hold together."""
        if not (is_number(self.low) and is_number(self.high)):
            return ""
        return f"{format_loss(self.low, self.unit)} to {format_loss(self.high, self.unit)}"


def trial_rows(
    manifest: Mapping[str, Any], timing: Mapping[str, Any] | None = None
) -> list[TrialRow]:
    """All trials of an artifact, in the order they were tried; timed with `timing.json`."""
    trials = manifest.get("trials") or []
    times = (timing or {}).get("trials") or []
    trials = [_timed(trial, times[i] if i < len(times) else {}) for i, trial in enumerate(trials)]
    goal, chosen, best = manifest.get("goal"), manifest.get("chosen"), _frontier(trials)
    return [
        _row(index, trial, goal, index == chosen, index in best)
        for index, trial in enumerate(trials)
    ]


def _timed(trial: Mapping[str, Any], times: Mapping[str, Any]) -> Mapping[str, Any]:
    measurement = trial.get("measurement")
    return trial if measurement is None else {**trial, "measurement": {**measurement, **times}}


def broken_limits(goal: Mapping[str, Any], measurement: Mapping[str, Any]) -> list[str]:
    """Names of the goal's limits that a measurement doesn't keep or can't show that it keeps."""
    held = {
        "max_drop": measurement["quality"]["drop"]["high"],
        "max_size_bytes": measurement["size_bytes"],
        "max_memory_bytes": measurement["memory_bytes"],
    }
    if measurement.get("latency_s") is not None:
        held["max_latency_s"] = measurement["latency_s"]
    return [
        name
        for name, value in held.items()
        if goal.get(name) is not None and not (is_number(value) and value <= goal[name])
    ]


def _row(index: int, trial: Mapping[str, Any], goal: Any, chosen: bool, frontier: bool) -> TrialRow:
    measurement = trial.get("measurement")
    found = measurement or {}
    drop = (found.get("quality") or {}).get("drop") or {}
    state = _state(measurement, goal, chosen)
    return TrialRow(
        number=index + 1,
        label=trial.get("label") or f"trial {index + 1}",
        state=state,
        frontier=frontier,
        size_bytes=found.get("size_bytes"),
        drop=drop.get("value"),
        low=drop.get("low"),
        high=drop.get("high"),
        kl=found.get("kl"),
        predicted_kl=trial.get("predicted_kl"),
        latency_s=found.get("latency_s"),
        speed=_speed(found.get("original_latency_s"), found.get("latency_s")),
        outcome=_outcome(trial, state),
        unit=drop.get("unit", ""),
    )


def _state(measurement: Mapping[str, Any] | None, goal: Any, chosen: bool) -> str:
    if measurement is None:
        return "failed"
    missed = bool(goal) and bool(broken_limits(goal, measurement))
    if chosen:
        return "nearest" if missed else "chosen"
    if not goal:
        return "plain"
    return "missed" if missed else "within"


def _outcome(trial: Mapping[str, Any], state: str) -> str:
    verdict = trial.get("error") or trial.get("verdict") or ("failed" if state == "failed" else "")
    if state not in ("chosen", "nearest") or verdict.startswith("chosen"):
        return verdict
    return f"chosen: {verdict}" if verdict else "chosen"


def _speed(original: float | None, now: float | None) -> str:
    if original is None or now is None:
        return ""
    return format_change(original, now, "faster", "slower")


def _frontier(trials: list[Mapping[str, Any]]) -> set[int]:
    """Indices of the trials that no other beats in both size and drop."""
    costs = [
        (trial["measurement"]["size_bytes"], trial["measurement"]["quality"]["drop"]["value"], i)
        for i, trial in enumerate(trials)
        if trial.get("measurement") is not None
        and is_number(trial["measurement"]["quality"]["drop"]["value"])
    ]
    best, kept = math.inf, set()
    for _, drop, index in sorted(costs):
        if drop < best:
            best = drop
            kept.add(index)
    return kept
