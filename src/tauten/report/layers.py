"""The decision for each layer, grouped as the report shows it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class LayerRow:
    """One layer.

    Attributes:
        error_width: Length of its error's bar, in percent of the largest error of the model.
    """

    name: str
    shape: Sequence[int]
    format: str
    bits: float
    original_bytes: int
    size_bytes: int
    error: float
    error_width: float
    reason: str


@dataclass(frozen=True)
class LayerUnit:
    """Layers that share a decision.

    Attributes:
        reason: Of all of them, None where they differ and each row has its own.
    """

    name: str
    rows: tuple[LayerRow, ...]
    reason: str | None


@dataclass(frozen=True)
class FormatShare:
    """All layers held in one format.

    Attributes:
        share: Of the bytes of all layers, 0 to 1.
    """

    format: str
    layers: int
    original_bytes: int
    size_bytes: int
    share: float


def layer_units(records: Sequence[Mapping[str, Any]]) -> list[LayerUnit]:
    """Group layer records by unit, in the order of each unit's first layer."""
    largest = max((r["error"] or 0.0 for r in records), default=0.0)
    groups: dict[str, list[LayerRow]] = {}
    for record in records:
        groups.setdefault(record["unit"], []).append(_row(record, largest))
    units = []
    for name, rows in groups.items():
        shared = len({row.reason for row in rows}) == 1
        units.append(LayerUnit(name, tuple(rows), rows[0].reason if shared else None))
    return units


def format_shares(records: Sequence[Mapping[str, Any]]) -> list[FormatShare]:
    """What each format holds, the most bytes first."""
    total = sum(record["size_bytes"] for record in records)
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for record in records:
        groups.setdefault(record["format"], []).append(record)
    shares = [_share(name, members, total) for name, members in groups.items()]
    return sorted(shares, key=lambda share: -share.size_bytes)


def _share(name: str, records: list[Mapping[str, Any]], total: int) -> FormatShare:
    size = sum(record["size_bytes"] for record in records)
    original = sum(record["original_bytes"] for record in records)
    return FormatShare(name, len(records), original, size, size / total if total else 0.0)


def _row(record: Mapping[str, Any], largest: float) -> LayerRow:
    error = record["error"] or 0.0
    return LayerRow(
        name=record["name"],
        shape=record["shape"],
        format=record["format"],
        bits=record["bits_per_weight"],
        original_bytes=record["original_bytes"],
        size_bytes=record["size_bytes"],
        error=error,
        error_width=100 * error / largest if largest else 0.0,
        reason=record["reason"],
    )
