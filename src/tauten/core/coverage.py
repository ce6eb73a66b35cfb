"""How much of a model a recipe has changed, and what holds the rest."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from tauten.core.figures import format_percent, plural

ENOUGH = 0.9  # of the weights; below, it is said which classes hold the rest
NEGLIGIBLE = 0.01  # of the zeros of a model that came pruned
NAMED = 5  # of those classes


@dataclass(frozen=True)
class Coverage:
    """Shares of the weights that stand in tensors of two dimensions and more, tied ones once.

    Attributes:
        share: Of those that are meant.
        rest: Shares of the others, by the class of the module that holds them, largest first.
    """

    share: float
    rest: dict[str, float]

    @classmethod
    def of(cls, counted: float, others: Counter[str]) -> "Coverage":
        """From numbers of weights."""
        total = max(1.0, counted + others.total())
        return cls(counted / total, {kind: n / total for kind, n in others.most_common()})

    @property
    def suffices(self) -> bool:
        """Whether the rest is small."""
        return self.share >= ENOUGH

    @property
    def holders(self) -> str:
        """The classes that hold the rest, with their shares."""
        named = list(self.rest.items())[:NAMED]
        listed = ", ".join(f"{kind} ({format_percent(share)})" for kind, share in named)
        return listed + (", and others" if len(named) < len(self.rest) else "")


def coverage_of(layers: Iterable[Mapping[str, Any]]) -> Coverage:
    """How much was changed.

    Args:
        layers: `LayerRecord`s as plain data.
    """
    changed, kept = 0.0, Counter[str]()
    for layer in layers:
        if layer["original_bytes"]:  # a tied twin has none
            count = math.prod(layer["shape"])
            if str(layer["reason"]).startswith("kept"):
                kept[layer.get("held_by") or "others"] += count
            else:
                changed += count
    return Coverage.of(changed, kept)


def changed_sentence(layers: Iterable[Mapping[str, Any]]) -> tuple[str, bool]:
    """What to say of it, and whether it is a warning."""
    found = coverage_of(layers)
    if found.suffices:
        return f"{format_percent(found.share)} of the weights were changed", False
    share = format_percent(found.share)
    return f"only {share} of the weights were changed; the rest is held by {found.holders}", True


def zeros_sentence(layers: Iterable[Mapping[str, Any]]) -> str:
    """What to say of a model that came pruned and lost zeros; empty where it kept them."""
    sizes = [(math.prod(layer["shape"]), layer) for layer in layers if layer.get("zeros")]
    total = sum(size for size, _ in sizes)
    before = sum(size * layer["zeros"] for size, layer in sizes) / max(1, total)
    lost = sum(size * layer["zeros_lost"] for size, layer in sizes) / max(1, total)
    if lost <= NEGLIGIBLE * before:
        return ""
    return (
        f"{plural(len(sizes), 'layer')} came pruned: {format_percent(before)} of the weights were "
        f"zero, and {format_percent(lost / before)} of those aren't any more"
    )
