"""What a run found, in words that the terminal and the HTML report share.

`manifest` is an artifact's `tauten.json`, `timing` its `timing.json`; see `models.artifact`.
"""

import math
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from tauten.core.coverage import changed_sentence
from tauten.core.figures import (
    format_bytes,
    format_limit,
    format_loss,
    format_number,
    format_percent,
    format_seconds,
    is_number,
    loss_word,
    many,
    plural,
)
from tauten.report.trials import TrialRow, trial_rows

Facts = Mapping[str, Any]
_EVIDENCE = {
    "test": "that no choice was made on",
    "development": "that the trials were compared on",
}
DEFAULT_TEXT = "python-docs"
SENSIBLE = 3.0  # a looser limit is worth naming up to so many times the goal's
_TITLES = {"test": "Sealed test split", "development": "Development split"}


@dataclass(frozen=True)
class Badge:
    """Whether the result is proven. `tone` is good, warn or bad."""

    text: str
    tone: str
    detail: str


@dataclass(frozen=True)
class Split:
    """Quality on one split of the data.

    Attributes:
        tone: Of its bound beside the goal: good, bad, or even without a goal.
        bar: Places in percent of the bar's width: low, value, high, zero and goal (None without
            one); None if a figure isn't finite.
    """

    title: str
    metric: str
    original: float
    value: float
    drop: float
    low: float
    high: float
    examples: int
    sentence: str
    tone: str
    bar: dict[str, float | None] | None
    counted: str


def badge(manifest: Facts) -> Badge:
    """The certificate in a few words."""
    limit, reason = max_drop(manifest), manifest.get("reason") or ""
    reason = reason[:1].upper() + reason[1:]
    if manifest.get("certified"):
        unit = drop_unit(manifest)
        text = "Certified" if limit is None else f"Certified within {format_limit(limit, unit)}"
        if (manifest.get("data") or {}).get("name") == DEFAULT_TEXT:
            text += " on the default text"  # which may be unlike that of the user
        return Badge(text, "good", reason)
    if not measured(manifest):
        detail = "Nothing was measured on data, so no drop is claimed."
        return Badge("Not measured", "warn", detail)
    return Badge("Not certified", "bad", reason)


def drop_unit(manifest: Facts) -> str:
    """Of the goal's limit on the drop, and of all drops."""
    return str((manifest.get("goal") or {}).get("drop_unit", ""))


def lost_word(manifest: Facts) -> str:
    """Whether the metric falls or rises where quality is lost."""
    qualities = measured(manifest)
    return loss_word(not qualities or is_score(qualities[0]))


def _verb(manifest: Facts) -> str:
    return {"drop": "fall", "rise": "rise"}[lost_word(manifest)]


def is_score(quality: Facts) -> bool:
    """Whether higher is better; manifests of old don't say it."""
    return bool(quality.get("higher_is_better", quality["metric"] != "perplexity"))


def max_drop(manifest: Facts) -> float | None:
    """The goal's limit on the drop, None without one."""
    return (manifest.get("goal") or {}).get("max_drop")


def chosen_measurement(manifest: Facts) -> Facts | None:
    """Of the chosen trial on the development split."""
    index, trials = manifest.get("chosen"), manifest.get("trials") or []
    return None if index is None else trials[index].get("measurement")


def measured(manifest: Facts) -> list[Facts]:
    """Qualities of the chosen model, the strongest evidence first."""
    development = (chosen_measurement(manifest) or {}).get("quality")
    return [quality for quality in (manifest.get("test"), development) if quality]


def coverage_line(manifest: Facts) -> tuple[str, bool] | None:
    """Which share of the weights was packed, and whether that is little; None if none was to be."""
    layers = manifest.get("layers") or []
    return changed_sentence(layers) if manifest.get("modules") else None


def shaping_lines(manifest: Facts) -> list[str]:
    """What each step before packing did to the model as a whole."""
    return [f"{step['step']}: {step['summary']}" for step in manifest.get("shaping") or []]


def goal_lines(manifest: Facts) -> list[str]:
    """The goal as sentences; empty without one."""
    goal, qualities = manifest.get("goal"), measured(manifest)
    if not goal:
        return []
    limit = partial(format_limit, unit=drop_unit(manifest))
    moves = f"Let {qualities[0]['metric']} {_verb(manifest)} by at most {{}}." if qualities else ""
    parts: dict[str, tuple[str, Callable[..., str]]] = {
        "max_drop": (moves or "Lose at most {} of quality.", limit),
        "max_size_bytes": ("Weights file of at most {}.", format_bytes),
        "max_latency_s": ("At most {} a token or call.", format_seconds),
        "max_memory_bytes": ("At most {} of memory.", format_bytes),
    }
    lines = [
        sentence.format(show(goal[name]))
        for name, (sentence, show) in parts.items()
        if goal.get(name) is not None
    ]
    return [*lines, f"Within that, minimize {goal.get('minimize', 'size')}."]


def splits(manifest: Facts) -> list[Split]:
    """Qualities of the chosen model on each split, with bars on one common scale."""
    qualities, limit = measured(manifest), max_drop(manifest)
    ends = [0.0] if limit is None else [0.0, limit]
    for quality in qualities:
        ends += [v for v in (quality["drop"]["low"], quality["drop"]["high"]) if is_number(v)]
    return [_split(quality, limit, min(ends), max(ends)) for quality in qualities]


def _split(quality: Facts, limit: float | None, low: float, high: float) -> Split:
    drop = quality["drop"]
    kept = limit is not None and is_number(drop["high"]) and drop["high"] <= limit
    return Split(
        title=_TITLES.get(quality["split"]) or str(quality["split"]),
        metric=quality["metric"],
        original=quality["original"],
        value=quality["value"],
        drop=drop["value"],
        low=drop["low"],
        high=drop["high"],
        examples=drop["examples"],
        sentence=_sentence(quality, limit),
        tone="even" if limit is None else "good" if kept else "bad",
        bar=_bar(drop, limit, low, high),
        counted=many(counted(quality)),
    )


def _bar(
    drop: Facts, limit: float | None, low: float, high: float
) -> dict[str, float | None] | None:
    margin = 0.08 * (high - low)
    if margin == 0 or not all(is_number(drop[key]) for key in ("low", "value", "high")):
        return None

    def place(value: float) -> float:
        return round(100 * (value - low + margin) / (high - low + 2 * margin), 2)

    places: dict[str, float | None] = {k: place(drop[k]) for k in ("low", "value", "high")}
    return {**places, "zero": place(0.0), "goal": None if limit is None else place(limit)}


def _sentence(quality: Facts, limit: float | None) -> str:
    """What a drop and its interval mean, for readers without statistics."""
    drop, before, after = quality["drop"], quality["original"], quality["value"]
    if not (is_number(before) and is_number(after)):
        return f"{quality['metric']} isn't finite. {bound_sentence(drop, limit)}"
    verb = "stayed at" if before == after else "rose" if after > before else "fell"
    move = verb + (f" from {format_number(before)} to" if before != after else "")
    examples = plural(drop["examples"], counted(quality))
    evidence = _EVIDENCE.get(quality["split"], f"of the {quality['split']} split")
    start = f"On {examples} {evidence}, {quality['metric']} {move} {format_number(after)}."
    return f"{start} {bound_sentence(drop, limit)}"


def counted(quality: Facts) -> str:
    """What an independent unit is; manifests of old don't say it."""
    noun = "document" if quality["metric"] == "perplexity" else "example"
    return str(quality.get("counted", noun))


def bound_sentence(drop: Facts, limit: float | None) -> str:
    """What the 95% bound says, beside the goal if there is one."""
    low, high, unit = drop["low"], drop["high"], drop.get("unit", "")
    if not is_number(high):
        return "Nothing bounds the loss: the measurement isn't finite."
    if high < 0:
        better = format_loss(-high, unit)
        claim = f"With 95% confidence it is better than the original by at least {better}"
    else:
        claim = f"With 95% confidence the loss is below {format_loss(high, unit)}"
    if limit is None:
        return f"{claim}. The goal sets no limit on it."
    if high <= limit:
        return f"{claim}, within the {format_limit(limit, unit)} that the goal allows."
    if is_number(low) and low > limit:
        return (
            f"The loss is above the {format_limit(limit, unit)} that the goal allows: "
            f"even the lower end of its interval is {format_loss(low, unit)}."
        )
    return f"{claim}. The goal allows {format_limit(limit, unit)}, so that isn't shown to hold."


def next_steps(manifest: Facts, timing: Facts, path: str) -> list[tuple[str, str]]:
    """Commands worth trying next, each with what it is for."""
    steps = []
    out = shlex.quote(path)
    source = shlex.quote(str((manifest.get("source") or {}).get("name") or "MODEL"))
    if not measured(manifest):
        aim = "measure what it costs in quality"
        steps.append((f"tauten optimize {source} --data TEXT --max-drop 2%", aim))
    else:
        steps += _more_effort(manifest, timing)
        steps += _other_limit(manifest)
    language = timing.get("unit") == "token" or any(
        quality["metric"] == "perplexity" for quality in measured(manifest)
    )
    if language:
        steps.append((f'tauten run {out} "Once upon a time"', "try it"))
    steps.append((f"tauten report {out}", "every trial and layer, with reasons"))
    return steps


def _more_effort(manifest: Facts, timing: Facts) -> list[tuple[str, str]]:
    """What a longer search would probably bring, if the run left something."""
    more, size = timing.get("more"), (manifest.get("weights") or {}).get("size_bytes")
    if not more or not is_number(size):
        return []
    gain = f"about {format_bytes(more['gain'] * size)} ({format_percent(more['gain'])}) less"
    aim = f"{gain}, in about {format_seconds(60 * max(1, round(more['time_s'] / 60)))}"
    return [(f"tauten optimize ... --effort {more['effort']}", aim)]


def _other_limit(manifest: Facts) -> list[tuple[str, str]]:
    """The nearest limit that would change the outcome, from trials that are already measured."""
    limit, unit = max_drop(manifest), drop_unit(manifest)
    rows = [row for row in trial_rows(manifest) if is_number(row.high) and row.high > 0]
    chosen = chosen_measurement(manifest)
    if limit is None or not rows:
        return []
    if manifest.get("certified") and chosen:
        smaller = [r for r in rows if (r.size_bytes or 0) < chosen["size_bytes"]]
        least = 0.01 if not unit else 0.0
        sensible = [row for row in smaller if _bound(row) <= SENSIBLE * max(limit, least)]
        return [_accepting(min(sensible, key=_bound), "take", unit)] if sensible else []
    best = min(rows, key=_bound)
    if _bound(best) > limit:
        return [_accepting(best, "accept", unit)]
    return [("tauten optimize ... --data MORE_TEXT", "more documents narrow the interval")]


def _accepting(row: TrialRow, verb: str, unit: str) -> tuple[str, str]:
    # Rounded up to two digits: the limit must not lie below the bound it is to allow.
    bound = _bound(row) if unit else 100 * _bound(row)
    step = 10.0 ** (math.floor(math.log10(bound)) - 1)
    rounded = f"{math.ceil(bound / step) * step:.6g}"
    limit = f"'{rounded} {unit}'" if unit else f"{rounded}%"
    return (
        f"tauten optimize ... --max-drop {limit}",
        f"would {verb} trial {row.number}: {format_bytes(row.size_bytes)}",
    )


def _bound(row: TrialRow) -> float:
    return row.high if row.high is not None else math.inf
