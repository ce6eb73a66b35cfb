"""A recipe applied to a model, on disk: what a trial has made, or what was cut from others."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from tauten.core.journal import Journal
from tauten.core.measurement import LayerRecord
from tauten.core.recipe import Recipe
from tauten.formats.packed import from_spec
from tauten.models.artifact import packed_source
from tauten.models.safetensors_writer import Joined
from tauten.models.source import Source
from tauten.models.store import BlockStore
from tauten.runtime.kernels import memory_bytes


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A recipe applied to a model, on disk.

    Attributes:
        recipe: What was applied, with a sparsity for each layer where that was found out.
        source: Opens the packed model.
        dense: The model that was packed: the original, or what the steps before made of it.
        shaping: What the manifest says of those steps.
        blocks: Of the packed model.
        specs: Description of each packed layer.
        layers: Decision for each layer.
        weights: The weights file it would become; knows its exact size.
        journal: Of the run.
        store: Its parts before they are entropy-coded.
        parts: Of the model.
    """

    recipe: Recipe
    source: Source
    dense: Source
    shaping: tuple[dict[str, Any], ...]
    blocks: tuple[str, ...]
    specs: dict[str, dict[str, Any]]
    layers: list[LayerRecord]
    weights: Joined
    journal: Journal
    store: BlockStore
    parts: tuple[str, ...]

    @property
    def memory_bytes(self) -> int:
        """Its tensors in memory, as they are once it was run."""
        weights = (spec["weight"] for spec in self.specs.values() if "weight" in spec)
        packed = [from_spec(weight) for weight in weights if "tied_to" not in weight]
        more = sum(memory_bytes(weight) - weight.size_bytes for weight in packed)
        return self.store.joined(list(self.parts)).tensor_bytes + more


def kept_in(store: BlockStore, candidate: Candidate) -> Candidate:
    """A candidate whose tensors are those in another store."""
    source = packed(candidate.dense, candidate.specs, candidate.parts, store)
    weights = store.joined(list(candidate.parts))
    return dataclasses.replace(candidate, source=source, weights=weights, store=store)


def packed(
    dense: Source, specs: dict[str, dict[str, Any]], parts: Sequence[str], store: BlockStore
) -> Source:
    """A model's source with the parts of a store in place of those of the dense model."""
    return packed_source(dense, specs, store.reader(parts), "candidate")


def cut_part(
    part: str, store: BlockStore, recipe: Recipe, parents: Mapping[str, Candidate]
) -> dict[str, Any]:
    """Write one part of a mix; what was recorded of it."""
    candidates = list({id(parent): parent for parent in parents.values()}.values())
    tensors: dict[str, Tensor] = {}
    specs: dict[str, Any] = {}
    layers: dict[str, Any] = {}
    for candidate in candidates:
        done = candidate.store.finished(part)
        assert done is not None, "its walk ended"
        for key, tensor in candidate.store.read(part).items():
            owner = next((n for n in _prefixes(key) if n in parents), None)
            if owner is None or parents[owner] is candidate:
                tensors[key] = tensor
        specs |= {n: spec for n, spec in done["specs"].items() if parents.get(n) is candidate}
        for record in done["layers"]:
            if parents.get(record["name"], candidate) is candidate:
                layers[record["name"]] = _restated(record, recipe)
    records = list(layers.values())
    store.write(part, tensors, specs=specs, layers=records)
    return {"specs": specs, "layers": records}


def _prefixes(key: str) -> list[str]:
    """Names of the modules that a tensor may lie in."""
    words = key.split(".")
    return [".".join(words[:count]) for count in range(1, len(words))]


def _restated(record: dict[str, Any], recipe: Recipe) -> dict[str, Any]:
    """A layer's record with the step of another recipe."""
    found = recipe.step_for(record["name"])
    if found is None:
        return record
    head, colon, remark = record["reason"].partition("; ")
    if not head.startswith("step "):
        return record
    head = f"step {found[0]} of the recipe is for {found[1].place}"
    return {**record, "reason": head + colon + remark}
