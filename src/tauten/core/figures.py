"""Figures as people read them. Plain ASCII, so that every terminal can show them."""

import math
from collections.abc import Sequence
from typing import TypeGuard

ABSENT = "-"
_UNTOLD = 1e100  # squares of smaller figures are finite
_BYTE_STEPS = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"))
_SMALL_CHANGE = 1.2  # Below this factor a percentage reads better than "1.1x".
_NO_CHANGE = 1.005


def format_bytes(count: float | None) -> str:
    """1_500_000 as `1.50 MB`, in the decimal units that file managers and hubs use."""
    if not is_number(count):
        return ABSENT
    for step, unit in _BYTE_STEPS:
        if count >= step * 0.9995:
            return f"{_three_digits(count / step)} {unit}"
    return f"{count:.0f} B"


def format_percent(ratio: float | None) -> str:
    """0.0123 as `1.23%`, with fewer decimals the larger it is."""
    if ratio is None or math.isnan(ratio):
        return ABSENT
    if math.isinf(ratio):
        return "infinite" if ratio > 0 else "-infinite"
    percent = 100 * ratio
    size = abs(percent)
    if size >= 1e6:
        return f"{percent:.1e}%"
    decimals = 2 if size < 9.995 else 1 if size < 99.95 else 0
    text = f"{percent:,.{decimals}f}%"
    return text.lstrip("-") if float(text[:-1].replace(",", "")) == 0 else text


def format_loss(loss: float | None, unit: str = "") -> str:
    """A loss of quality in a unit of `Goal.drop_unit`: `1.23%`, `0.50 points`, or bare."""
    if not unit or not is_number(loss):
        return format_percent(loss)
    return f"{loss:.2f} points" if unit == "points" else format_number(loss)


def format_limit(limit: float | None, unit: str = "") -> str:
    """A limit on it as the user wrote it: 0.02 as `2%`, not `2.00%`."""
    if not is_number(limit):
        return ABSENT
    return f"{limit:.4g} {unit}" if unit else f"{100 * limit:.4g}%"


def loss_word(higher_is_better: bool) -> str:
    """What a loss of quality is called."""
    return "drop" if higher_is_better else "rise"


def format_seconds(seconds: float | None) -> str:
    """0.0123 as `12.3 ms`, 192 as `3 min 12 s`."""
    if not is_number(seconds):
        return ABSENT
    if seconds < 0.9995e-3:
        return f"{_three_digits(seconds * 1e6)} us"
    if seconds < 0.9995:
        return f"{_three_digits(seconds * 1e3)} ms"
    if seconds < 59.95:
        return f"{_three_digits(seconds)} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def format_number(value: float | None) -> str:
    """A metric's value or another bare figure, to about four digits."""
    if not is_number(value):
        return "infinite" if value is not None and math.isinf(value) else ABSENT
    if value == 0:
        return "0"
    if abs(value) >= 1e6 or abs(value) < 1e-4:
        return f"{value:.2e}"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.2f}" if abs(value) >= 10 else f"{value:#.3g}"


def format_rate(rate: float | None) -> str:
    """Events a second to three digits: 18.8."""
    return _three_digits(rate) if is_number(rate) else ABSENT


def format_count(count: float | None) -> str:
    """134_515_008 as `134.5M`: parameters and tokens."""
    if not is_number(count):
        return ABSENT
    for step, unit in ((1e9, "B"), (1e6, "M")):
        if count >= step * 0.9995:
            return f"{count / step:.1f}{unit}"
    return f"{count:,.0f}"


def format_shape(shape: Sequence[int] | None) -> str:
    """[576, 192] as `576 x 192`."""
    return " x ".join(map(str, shape)) if shape else ABSENT


def format_change(before: float, after: float, less: str, more: str) -> str:
    """How `after` compares: `4.4x smaller`, `12% larger`, or `unchanged`.

    Args:
        before: Of the original.
        after: Of this model.
        less: Word for after < before, such as smaller or faster.
        more: Word for after > before.
    """
    if not (is_number(before) and is_number(after) and before > 0 and after > 0):
        return ABSENT
    factor = max(before, after) / min(before, after)
    if factor < _NO_CHANGE:
        return "unchanged"
    word = less if after < before else more
    if factor < _SMALL_CHANGE:
        return f"{100 * abs(after - before) / before:.0f}% {word}"
    return f"{factor:.1f}x {word}"


def plural(count: int, noun: str) -> str:
    """`1 document`, `12 documents`."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {many(noun)}"


def many(noun: str) -> str:
    """`documents`, `batches`."""
    return f"{noun}{'es' if noun.endswith('ch') else 's'}"


def listed(names: Sequence[str], shown: int = 8) -> str:
    """Names, the first few of many."""
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more


def is_number(value: float | None) -> TypeGuard[float]:
    """Whether it can be shown; JSON files may hold null, NaN or Infinity instead."""
    return value is not None and abs(value) < _UNTOLD


def _three_digits(value: float) -> str:
    return f"{value:.2f}" if value < 9.995 else f"{value:.1f}" if value < 99.95 else f"{value:.0f}"
