"""What a latency goal gave up because it was slower: formats of layers, and whole models."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tauten.core.figures import format_change, format_seconds


@dataclass(frozen=True)
class RevertRow:
    """A format that some layers don't take.

    Attributes:
        layer: Shapes of the layers that decide together.
        unpacked_s: Their time unpacked; None where `timing.json` is gone.
        packed_s: Their time in this format, likewise.
        instead: What they take.
    """

    layer: str
    format: str
    unpacked_s: float | None
    packed_s: float | None
    instead: str

    @property
    def speed(self) -> str:
        """Such as `1.5x slower`; empty without figures."""
        if self.unpacked_s is None or self.packed_s is None:
            return ""
        return format_change(self.unpacked_s, self.packed_s, "faster", "slower")


def revert_rows(manifest: Mapping[str, Any], timing: Mapping[str, Any]) -> list[RevertRow]:
    """All formats that dropped out, in the order of the recipes."""
    timed = {(row["layer"], row["format"]): row for row in timing.get("formats") or []}
    rows = []
    for entry in manifest.get("reverted") or []:
        figures = timed.get((entry["layer"], entry["format"]), {})
        times = figures.get("unpacked_s"), figures.get("packed_s")
        rows.append(RevertRow(entry["layer"], entry["format"], *times, entry["instead"]))
    return rows


def model_revert(timing: Mapping[str, Any]) -> str:
    """The sentence on a chosen recipe that was given up in the last timing; else empty."""
    given_up, original = timing.get("given_up"), timing.get("original")
    if not given_up or not original:
        return ""
    before, after = original["median_s"], given_up["median_s"]
    change = format_change(before, after, "faster", "slower")
    times = f"{format_seconds(after)} beside {format_seconds(before)}"
    return f"The recipe chosen was {change} than the original ({times}), which is kept."
