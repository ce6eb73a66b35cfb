"""The headline: each cost and quality of the model beside the original's."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from tauten.core.figures import (
    ABSENT,
    format_bytes,
    format_change,
    format_loss,
    format_number,
    format_rate,
    format_seconds,
    is_number,
)
from tauten.report.facts import lost_word, max_drop, measured

Facts = Mapping[str, Any]


@dataclass(frozen=True)
class Note:
    """A line below a figure. `tone` is good, bad, warn or even."""

    text: str
    tone: str = "even"


@dataclass(frozen=True)
class Tile:
    """One figure of the headline.

    Attributes:
        big: What catches the eye.
        before: The original's figure.
        after: This model's figure.
        notes: What the change means.
    """

    title: str
    big: str
    before: str
    after: str
    notes: tuple[Note, ...]


def tiles(manifest: Facts, timing: Facts) -> list[Tile]:
    """Size, quality, speed and memory; those that weren't measured say so or stay away."""
    found = [_size(manifest), _quality(manifest), *_speed(timing), _memory(manifest, timing)]
    return [tile for tile in found if tile is not None]


def headline(manifest: Facts, timing: Facts) -> str:
    """One sentence: what went in, what came out, what it cost."""
    source, size = manifest["source"], manifest["weights"]["size_bytes"]
    parts = [f"{format_bytes(source['size_bytes'])} went in, {format_bytes(size)} came out"]
    qualities = measured(manifest)
    if qualities:
        parts.append(_quality_words(qualities[0], lost_word(manifest)))
    else:
        parts.append("its quality was not measured")
    speed = _speed_note(timing)
    if speed is not None:
        parts.append(speed.text)
    return "; ".join(parts) + "."


def _quality_words(quality: Facts, lost: str) -> str:
    drop, metric = quality["drop"], quality["metric"]
    show = partial(format_loss, unit=drop.get("unit", ""))
    worse, better = ("fell", "rose") if lost == "drop" else ("rose", "fell")
    if not is_number(drop["value"]):
        return f"{metric} is no longer finite"
    bound = f"at most {show(drop['high'])} with 95% confidence"
    if drop["value"] > 0:
        return f"{metric} {worse} by {show(drop['value'])}, {bound}"
    if drop["value"] < 0:
        if drop["high"] < 0:
            bound = f"at least {show(-drop['high'])} with 95% confidence"
            return f"{metric} {better} by {show(-drop['value'])}, {bound}"
        return f"{metric} {better} by {show(-drop['value'])} ({lost} {bound})"
    return f"{metric} is unchanged ({lost} {bound})"


def _size(manifest: Facts) -> Tile:
    source, after = manifest["source"], manifest["weights"]["size_bytes"]
    before, bf16 = source["size_bytes"], source.get("bf16_bytes")
    same = bf16 is not None and abs(before - bf16) <= 0.01 * bf16
    name = "the original" if same else "the source file"
    notes = [_size_note(before, after, name)]
    if bf16 is not None and not same:
        notes.append(_size_note(bf16, after, f"bf16 ({format_bytes(bf16)})"))
    big = format_bytes(after)
    return Tile("Weights file", big, format_bytes(before), big, tuple(notes))


def _size_note(before: float, after: float, name: str) -> Note:
    change = format_change(before, after, "smaller", "larger")
    if change == "unchanged":
        return Note(f"the size of {name}")
    return Note(f"{change} than {name}", "good" if after < before else "bad")


def _quality(manifest: Facts) -> Tile:
    qualities = measured(manifest)
    if not qualities:
        note = Note("nothing was measured, so no drop is claimed", "warn")
        return Tile("Quality", "not measured", ABSENT, ABSENT, (note,))
    quality, limit = qualities[0], max_drop(manifest)
    drop = quality["drop"]
    show = partial(format_loss, unit=drop.get("unit", ""))
    kept = is_number(drop["high"]) and (limit is None or drop["high"] <= limit)
    tone = "bad" if not kept else "even" if limit is None else "good"
    split = "sealed test" if quality["split"] == "test" else f"{quality['split']} split"
    notes = (
        Note(f"below {show(drop['high'])} with 95% confidence", tone),
        Note(f"measured on the {split}"),
    )
    before, after = format_number(quality["original"]), format_number(quality["value"])
    lost = {"drop": "Drop in", "rise": "Rise of"}[lost_word(manifest)]
    return Tile(f"{lost} {quality['metric']}", show(drop["value"]), before, after, notes)


def _speed(timing: Facts) -> list[Tile]:
    original, now = timing.get("original") or {}, timing.get("chosen") or {}
    note = _speed_note(timing)
    if note is None:
        return []
    before, after = original.get("tokens_per_s"), now.get("tokens_per_s")
    if before is not None and after is not None:
        shown = [format_rate(value) for value in (before, after)]
        title = "Tokens a second"
    else:
        shown = [format_seconds(side["median_s"]) for side in (original, now)]
        title = f"Time a {timing.get('unit', 'call')}"
    found = [Tile(title, shown[1], shown[0], shown[1], (note,))]
    if original.get("prefill_s") is not None and now.get("prefill_s") is not None:
        found.append(_prefill(original["prefill_s"], now["prefill_s"]))
    return found


def _prefill(before: float, after: float) -> Tile:
    change = format_change(before, after, "faster", "slower")
    # Prompts are timed a few times only: a small difference is noise.
    small = abs(after - before) < 0.05 * before
    tone = "even" if small else "good" if after < before else "bad"
    note = Note(change if change == "unchanged" else f"{change} than the original", tone)
    shown = format_seconds(after)
    return Tile("Reading the prompt", shown, format_seconds(before), shown, (note,))


def _speed_note(timing: Facts) -> Note | None:
    """How the time of a token or call compares; None if either wasn't timed."""
    original, now = timing.get("original") or {}, timing.get("chosen") or {}
    before, after = original.get("median_s"), now.get("median_s")
    if before is None or after is None:
        return None
    change = format_change(before, after, "faster", "slower")
    if change == "unchanged":
        return Note("as fast as the original")
    text = f"{change} than the original"
    noise = max(original.get("spread_s") or 0.0, now.get("spread_s") or 0.0)
    if abs(after - before) <= noise:
        return Note(f"{text}, within the timing's spread", "even" if after < before else "bad")
    return Note(text, "good" if after < before else "bad")


def _memory(manifest: Facts, timing: Facts) -> Tile | None:
    before = (timing.get("original") or {}).get("rss_bytes")
    after = (timing.get("chosen") or {}).get("rss_bytes")
    tensors = manifest.get("memory_bytes")
    if after is None:
        if tensors is None:
            return None
        big = format_bytes(tensors)
        return Tile("Memory of its tensors", big, ABSENT, big, ())
    notes = []
    if before is not None:
        change = format_change(before, after, "less", "more")
        tone = "even" if change == "unchanged" else "good" if after < before else "bad"
        notes.append(Note(change if tone == "even" else f"{change} than the original", tone))
    if tensors is not None:
        notes.append(Note(f"{format_bytes(tensors)} of it are its tensors"))
    big = format_bytes(after)
    return Tile("Process memory", big, format_bytes(before), big, tuple(notes))
