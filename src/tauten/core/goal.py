"""What the user wants: limits on what may be lost or used, and what to make small."""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, fields
from numbers import Real
from typing import Any

from tauten.core.errors import GoalError

MINIMIZE = ("size", "latency", "memory")
DROP_UNITS = ("", "points", "absolute")
_LIMITS = ("max_drop", "max_size_bytes", "max_latency_s", "max_memory_bytes")
_BYTE_UNITS = {
    "": 1,
    "B": 1,
    "KB": 1e3,
    "MB": 1e6,
    "GB": 1e9,
    "KIB": 2**10,
    "MIB": 2**20,
    "GIB": 2**30,
}
_TIME_UNITS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "min": 60.0, "m": 60.0, "h": 3600.0}


@dataclass(frozen=True, init=False)
class Goal:
    """Limits to keep and the cost to minimize within them.

    Attributes:
        max_drop: Largest acceptable loss of quality. A number, or text such as `2%`, is a share of
            the original's value (0.02 is 2%) by which perplexity, losses and error rates may rise
            and other metrics fall. `0.02 absolute` is in the metric's own unit instead, and
            `0.5 points` in hundredths of it, as of accuracies in percent.
        drop_unit: What `max_drop` counts: empty for shares, `absolute` or `points`; text says it.
        max_size_bytes: Largest file of weights; a number, or text such as `60MB`.
        max_latency_s: Longest time of one token (language models) or one call (others); a number,
            or text such as `20ms`.
        max_memory_bytes: Most resident memory, for the optimization itself and for its result; as
            for a size.
        minimize: `size`, `latency` or `memory`; with a limit on bytes and none on the drop, what
            loses least within them is best, whatever it costs.
    Raises:
        GoalError: A limit is negative, not a number, or no model could meet it.
    """

    max_drop: float | None
    max_size_bytes: int | None
    max_latency_s: float | None
    max_memory_bytes: int | None
    minimize: str
    drop_unit: str

    def __init__(
        self,
        max_drop: float | str | None = 0.01,
        max_size_bytes: int | str | None = None,
        max_latency_s: float | str | None = None,
        max_memory_bytes: int | str | None = None,
        minimize: str = "size",
        drop_unit: str = "",
    ):
        if isinstance(max_drop, str):
            max_drop, said = parse_drop(max_drop)
            if drop_unit and said != drop_unit:
                raise GoalError(f"max_drop is in {said or 'shares'}, and drop_unit={drop_unit!r}")
            drop_unit = said
        limits = (
            _read("max_size_bytes", max_size_bytes, parse_bytes),
            _read("max_latency_s", max_latency_s, parse_seconds),
            _read("max_memory_bytes", max_memory_bytes, parse_bytes),
        )
        values = (max_drop, *limits, minimize, drop_unit)
        for field, value in zip(fields(self), values, strict=True):
            object.__setattr__(self, field.name, value)
        self._check()

    @property
    def is_budget(self) -> bool:
        """Whether bytes are limited and the drop isn't: then what loses least is best."""
        limited = self.max_size_bytes is not None or self.max_memory_bytes is not None
        return limited and self.max_drop is None and not self.is_about_latency

    @property
    def limits(self) -> dict[str, float]:
        """The limits that are set, by name."""
        values = {name: getattr(self, name) for name in _LIMITS}
        return {name: value for name, value in values.items() if value is not None}

    @property
    def is_about_latency(self) -> bool:
        """Whether it limits or minimizes latency: then nothing slower than the original serves."""
        return self.max_latency_s is not None or self.minimize == "latency"

    def _check(self) -> None:
        if self.minimize not in MINIMIZE:
            raise GoalError(f"minimize={self.minimize!r}: expected one of {', '.join(MINIMIZE)}")
        if self.drop_unit not in DROP_UNITS:
            raise GoalError(f"drop_unit={self.drop_unit!r}: expected one of {DROP_UNITS}")
        for name, value in self.limits.items():
            if (
                isinstance(value, bool)
                or not isinstance(value, Real)
                or not math.isfinite(value)
                or value < 0
            ):
                raise GoalError(f"{name}={value!r}: expected a number, zero or more")
            if value == 0 and name != "max_drop":
                raise GoalError(f"{name}=0: no model can meet it; give a positive limit")
        if self.max_drop is not None and self.max_drop >= 10 and not self.drop_unit:
            raise GoalError(f"max_drop={self.max_drop}: is a ratio; write 0.02 for 2%")


def _read(name: str, value: Any, parse: Callable[[str], float]) -> Any:
    """A limit, perhaps given as text."""
    try:
        return parse(value) if isinstance(value, str) else value
    except GoalError as error:
        raise GoalError(f"{name}: {error}") from None


def parse_drop(text: str) -> tuple[float, str]:
    """Read '2%', '0.02', '0.5 points' or '0.02 absolute' as a number and its unit."""
    match = re.fullmatch(r"\s*([0-9.]+(?:e-?\d+)?)\s*(points?|absolute)\s*", text)
    if match:
        return _number(match[1], text), "absolute" if match[2] == "absolute" else "points"
    try:
        return parse_ratio(text), ""
    except GoalError as error:
        raise GoalError(f"max_drop={error}, or with a unit 0.5 points or 0.02 absolute") from None


def parse_ratio(text: str) -> float:
    """Read '2%' or '0.02' as 0.02; a bare '2' may be meant as either, and is refused."""
    match = re.fullmatch(r"\s*([0-9.]+(?:e-?\d+)?)\s*(%?)\s*", text)
    if not match:
        raise GoalError(f"{text!r} isn't a ratio: write 2% or 0.02")
    ratio = _number(match[1], text) / (100 if match[2] else 1)
    if ratio >= 1 and not match[2]:
        raise GoalError(f"{text!r}: write {ratio:g}% or, for that many times, {100 * ratio:g}%")
    return ratio


def parse_bytes(text: str, original_bytes: int | None = None) -> int:
    """Read '60MB', '1.5 GiB', '1000', or '4x' (a quarter of the original) as bytes."""
    match = re.fullmatch(r"\s*([0-9.]+)\s*([A-Za-z]*)\s*", text)
    unit = match[2].upper() if match else "?"
    if match and unit == "X" and original_bytes is not None:
        factor = _number(match[1], text)
        if factor <= 0:
            raise GoalError(f"{text!r}: a factor must be positive")
        return int(original_bytes / factor)
    if not match or unit not in _BYTE_UNITS:
        quarter = "" if original_bytes is None else ", or 4x (a quarter)"
        raise GoalError(f"{text!r} isn't a size: write 60MB or 1.5GiB{quarter}")
    return int(_number(match[1], text) * _BYTE_UNITS[unit])


def parse_seconds(text: str) -> float:
    """Read '20ms', '20ms/token', '0.02' or '10min' as seconds."""
    match = re.fullmatch(r"\s*([0-9.]+)\s*([a-z]*)\s*(?:/\s*(?:token|call))?\s*", text)
    if not match or (match[2] or "s") not in _TIME_UNITS:
        raise GoalError(f"{text!r} isn't a time: write 20ms, 20ms/token, 0.5s or 20min")
    return _number(match[1], text) * _TIME_UNITS[match[2] or "s"]


def _number(digits: str, text: str) -> float:
    try:
        return float(digits)
    except ValueError:
        raise GoalError(f"{text!r} has no readable number") from None
