"""What `inspect` tells of a model; opening one needs no more than this room's neighbours."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from tauten.core.coverage import Coverage, changed_sentence
from tauten.core.figures import format_percent
from tauten.models import artifact
from tauten.models.source import Source, open_source
from tauten.models.structure import Structure, find_structure, other_matrices, packable_modules


def open_model(name: str, base: str | None) -> Source:
    """A source from the command line; `base` is what an artifact was made from."""
    path = Path(name)
    if base is not None and artifact.is_artifact(path):
        return artifact.source(path, base)
    return open_source(name)


def inspect_facts(name: str, base: str | None) -> dict[str, Any]:
    """What `report.terminal.print_inspect` shows."""
    source = open_model(name, base)
    model = (source.outline or source.skeleton)()
    structure = find_structure(model)
    dense = sum(p.numel() for p in model.parameters())
    facts: dict[str, Any] = {
        "name": source.name,
        "kind": source.kind,
        "architecture": type(model).__name__,
        "size_bytes": source.size_bytes,
        "blocks": list(structure.blocks),
        "notes": [source.whole] if source.whole else [],
    }
    if source.kind == "artifact":
        layers = artifact.read_manifest(Path(name))["layers"]
        return facts | _packed(layers, structure, dense)
    return facts | _packable(model, structure, dense)


def _packable(model: nn.Module, structure: Structure, dense: int) -> dict[str, Any]:
    """Of a model's layers that can be packed."""
    units, tied = [], []
    for unit in structure.units:
        weights = {id(w): w for w in (model.get_parameter(f"{n}.weight") for n in unit.names)}
        shapes = list(dict.fromkeys(tuple(w.shape) for w in weights.values()))
        size = sum(w.nbytes for w in weights.values())
        units.append(
            {"names": unit.names, "block": unit.block, "shapes": shapes, "size_bytes": size}
        )
        if len(unit.names) > len(weights):
            tied.append(list(unit.names))
    found = _coverage(model)
    rest = f"; the rest is held by {found.holders}" if found.rest else ""
    said = f"{format_percent(found.share)} of the weights can be packed{rest}"
    facts = {"coverage": said, "covered": found.suffices, "parameters": dense}
    return facts | {"units": units, "tied": tied}


def _packed(
    layers: Sequence[Mapping[str, Any]], structure: Structure, dense: int
) -> dict[str, Any]:
    """Of an artifact's layers, by its manifest; a tied one has no bytes of its own."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for layer in layers:
        groups.setdefault(layer["unit"], []).append(layer)
    units, tied, packed = [], [], 0
    for group in groups.values():
        names = [layer["name"] for layer in group]
        own = [layer for layer in group if layer["original_bytes"]]
        changed = (layer for layer in own if not layer["reason"].startswith("kept"))
        packed += sum(math.prod(layer["shape"]) for layer in changed)
        shapes = list(dict.fromkeys(tuple(layer["shape"]) for layer in group))
        size = sum(layer["size_bytes"] for layer in group)
        block = structure.block_of(names[0])
        units.append({"names": names, "block": block, "shapes": shapes, "size_bytes": size})
        if len(own) < len(group):
            tied.append(names)
    said, warns = changed_sentence(layers)
    facts = {"coverage": said, "covered": not warns, "parameters": dense + packed}
    return facts | {"units": units, "tied": tied}


def _coverage(model: nn.Module) -> Coverage:
    """How much of a model stands in layers that can be packed."""
    weights = {id(m.weight): m.weight.numel() for _, m in packable_modules(model)}  # type: ignore[operator]
    others: Counter[str] = Counter()
    for name, weight in other_matrices(model):
        others[type(model.get_submodule(name.rpartition(".")[0])).__name__] += weight.numel()
    return Coverage.of(sum(weights.values()), others)
