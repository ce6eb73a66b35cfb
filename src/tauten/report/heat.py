"""Heat maps of a model's blocks: bits that each layer got, and how much it minds to lose them."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tauten.core.figures import format_number

_NUMBERED = re.compile(r"^(?P<before>.*?\.)(?P<block>\d+)\.(?P<kind>.+)$")
_WEAKEST = 8  # percent of the colour that the least value gets
_LEAST_BITS = 2.0  # between the palest colour and the full one: less is hardly a difference
_DECADES = 3.0  # sensitivities this far below the largest all look alike
_LEAST_BLOCKS = 2


@dataclass(frozen=True)
class Cell:
    """One layer; `strength` is the share of the full colour in percent."""

    strength: int
    title: str


@dataclass(frozen=True)
class HeatRow:
    """Layers of one kind, a block each; None where a block has none."""

    name: str
    cells: tuple[Cell | None, ...]


@dataclass(frozen=True)
class HeatMap:
    """Layers inside blocks, a row a kind and a column a block."""

    title: str
    key: str
    blocks: tuple[int, ...]
    rows: tuple[HeatRow, ...]


def heat_maps(manifest: Mapping[str, Any]) -> list[HeatMap]:
    """Maps of an artifact; empty for a model without numbered blocks."""
    records = manifest.get("layers") or []
    bits = {record["name"]: record["bits_per_weight"] for record in records}
    maps = [_map("Bits a weight", bits, _linear(bits), "stronger colour: more bits")]
    losses = _sensitivities(manifest, records)
    if losses:
        key = "stronger colour: more quality is lost where this layer is packed coarsely"
        maps.append(_map("Sensitivity (KL at the coarsest level)", losses, _decades(losses), key))
    return [found for found in maps if found is not None]


def _sensitivities(
    manifest: Mapping[str, Any], records: Sequence[Mapping[str, Any]]
) -> dict[str, float]:
    """By layer, what its unit is estimated to lose at the coarsest level."""
    units = (manifest.get("levels") or {}).get("units") or {}
    worst = {}
    for name, unit in units.items():
        finite = [loss for loss in unit["losses"] if loss is not None and math.isfinite(loss)]
        worst[name] = max(finite, default=0.0)
    return {r["name"]: worst[r["unit"]] for r in records if r["unit"] in worst}


def _map(title: str, values: Mapping[str, float], strengths: Mapping[str, int], key: str) -> Any:
    grid: dict[str, dict[int, Cell]] = {}
    for name, value in values.items():
        found = _NUMBERED.match(name)
        if found is not None:
            cell = Cell(strengths[name], f"{name}: {format_number(value)}")
            grid.setdefault(found["kind"], {})[int(found["block"])] = cell
    blocks = tuple(sorted({block for row in grid.values() for block in row}))
    if len(blocks) < _LEAST_BLOCKS:
        return None
    rows = (HeatRow(kind, tuple(row.get(b) for b in blocks)) for kind, row in grid.items())
    return HeatMap(title, key, blocks, tuple(rows))


def _linear(values: Mapping[str, float]) -> dict[str, int]:
    return _scaled(values, dict(values), _LEAST_BITS)


def _decades(values: Mapping[str, float]) -> dict[str, int]:
    top = max(values.values())
    floor = top / 10**_DECADES
    return _scaled(values, {n: math.log10(max(v, floor, 0.0) or 1.0) for n, v in values.items()})


def _scaled(
    values: Mapping[str, float], bent: Mapping[str, float], least_span: float = 0.0
) -> dict[str, int]:
    high = max(bent.values(), default=0.0)
    low = min(*bent.values(), high - least_span) if bent else 0.0
    span = (high - low) or 1.0
    return {n: round(_WEAKEST + (100 - _WEAKEST) * (bent[n] - low) / span) for n in values}
