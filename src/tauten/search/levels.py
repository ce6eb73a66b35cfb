"""The level table: what each unit of a model takes and loses at each level that was tried.

A level is a recipe that packs every layer by itself; it was applied to the whole model, so that its
bytes, its errors and what it does to the answers are known. A mix takes each unit from one of them.
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from tauten.core.journal import Journal
from tauten.core.recipe import Recipe, Step
from tauten.core.technique import (
    Technique,
)
from tauten.evaluation.sensitivity import Sensitivity, sensitivities
from tauten.formats.packed import PackedWeight
from tauten.models.calibration import CalibrationBatch
from tauten.models.loader import Loader
from tauten.models.packing import install_empty, matrix_of
from tauten.models.part_tensors import PartTensors
from tauten.models.structure import Structure, packable_modules
from tauten.search.candidate import Candidate
from tauten.search.correction import correction
from tauten.search.zeros import estimated_kl
from tauten.solvers.allocation import allocate

PROBED = 0.05  # KL in nats a token: above the noise of arithmetic, and errors still add up
RESOLUTION = 10**9  # steps that a limit on the loss is counted in


@dataclass(frozen=True)
class LevelTable:
    """Bytes and losses of all units at all levels.

    Attributes:
        units: Names of each unit's layers.
        levels: Recipes that were applied to the whole model.
        size_bytes: (units, levels) int64, as stored.
        losses: (units, levels) float64, estimated KL from the original's answers in nats a token.
    """

    units: tuple[tuple[str, ...], ...]
    levels: tuple[Recipe, ...]
    size_bytes: Tensor
    losses: Tensor

    def within_size(self, budget: int) -> Tensor:
        """(units,) levels that lose least in at most so many bytes; the smallest if none fit."""
        least = int(self.size_bytes.amin(1).sum())
        return allocate(self.size_bytes, self.losses, max(budget, least))

    def within_loss(self, limit: float) -> Tensor:
        """(units,) levels that take fewest bytes of those that lose at most so much in all.

        Where that is less than all lose at their best, they lose that."""
        limit = max(limit, (1 + 1e-5) * float(self.losses.amin(1).sum()))
        shares = torch.where(self.losses > 0, self.losses / limit, 0.0)  # the limit may be 0
        steps = (shares * RESOLUTION).ceil()
        allowed = steps <= RESOLUTION
        sizes = self.size_bytes.double().masked_fill(~allowed, torch.inf)
        return allocate(steps.masked_fill(~allowed, 0).long(), sizes, RESOLUTION)

    def loss(self, chosen: Tensor) -> float:
        """Estimated loss of a choice of levels."""
        return float(self.losses.gather(1, chosen[:, None]).sum())

    def size(self, chosen: Tensor) -> int:
        """Bytes of a choice of levels, of packable weights alone."""
        return int(self.size_bytes.gather(1, chosen[:, None]).sum())

    def extended(self) -> "LevelTable":
        """With a gentler and a bolder level, that go on as the outermost two on either side do."""
        order = self.size_bytes.sum(0).argsort()
        pairs = ((order[-1], order[-2]), (order[0], order[1]))
        sizes = [(2 * self.size_bytes[:, a] - self.size_bytes[:, b]).clamp(min=0) for a, b in pairs]
        ratios = [self.losses[:, a] / self.losses[:, b].clamp(min=1e-12) for a, b in pairs]
        losses = [self.losses[:, a] * r for (a, _), r in zip(pairs, ratios, strict=True)]
        return replace(
            self,
            levels=(*self.levels, *(self.levels[int(a)] for a, _ in pairs)),
            size_bytes=torch.cat([self.size_bytes, torch.stack(sizes, 1)], 1),
            losses=torch.cat([self.losses, torch.stack(losses, 1)], 1),
        )

    def facts(self) -> dict[str, Any]:
        """Plain data for the manifest: bytes and losses by each unit's first layer."""
        units = {
            names[0]: {"size_bytes": sizes, "losses": losses}
            for names, sizes, losses in zip(
                self.units, self.size_bytes.tolist(), self.losses.tolist(), strict=True
            )
        }
        return {"levels": [*map(str, self.levels)], "units": units}

    def level_of(self, chosen: Tensor) -> dict[str, int]:
        """By layer, the level that its unit takes."""
        pairs = zip(self.units, chosen.tolist(), strict=True)
        return {name: level for names, level in pairs for name in names}

    def recipe(self, chosen: Tensor) -> Recipe:
        """One step a technique, for the layers that take it."""
        places: dict[Technique, list[str]] = {}
        for name, level in self.level_of(chosen).items():
            found = self.levels[level].step_for(name)
            if found is not None:
                places.setdefault(found[1].technique, []).append(name)
        whole = sum(map(len, self.units))
        steps = (
            Step(technique, "*" if len(names) == whole else ",".join(names))
            for technique, names in places.items()
        )
        return replace(self.levels[0], steps=tuple(steps))


def level_table(
    model: nn.Module,
    structure: Structure,
    loader: Loader | None,
    batches: Sequence[CalibrationBatch],
    candidates: Sequence[Candidate],
    kls: Sequence[float | None],
    journal: Journal,
    probe: Callable[[int, Sequence[str]], float | None] | None = None,
) -> LevelTable:
    """Judge each weight of each candidate by one pass with gradients.

    All losses at a level are then multiplied by what its true KL is of their sum: errors of tokens
    and layers add up in ways that no single layer tells. A layer whose sensitivity isn't known (an
    embedding, an expert that no token reached) counts like the average one of the same relative
    error.

    Args:
        model: The original, with empty tensors where there is a loader.
        structure: Of the model.
        loader: As for `Walk`.
        batches: Data that candidates didn't look at: on what they did, their errors look too small.
        candidates: Of the levels.
        kls: Measured of each candidate; None where it wasn't.
        journal: Of the run; rows that stand in it aren't computed again.
        probe: True KL of some layers at a level, all else as in the original (see
            `search.correction`).
    """
    tensors = PartTensors(model, structure, loader)
    rows = _Rows(model, tensors, candidates, journal)
    names_of = rows.missing(structure)
    if any(names_of.values()):
        for found in sensitivities(model, structure.blocks, tensors.filled, names_of, batches):
            for name, sensitivity in found.items():
                rows.add(name, sensitivity)
        for names in names_of.values():
            for name in names:
                rows.add(name, None)
    known = [(level, kl) for level, kl in enumerate(kls) if kl is not None and kl > 0]
    factors: dict[str, float] = {}
    if probe is not None and known:
        level, _ = min(known, key=lambda item: abs(math.log(item[1] / PROBED)))
        factors = correction(rows.losses(level), structure, functools.partial(probe, level))
    return rows.table(structure, kls, factors)


class _Rows:
    """Rows of the table, a layer each, as they are filled."""

    def __init__(
        self,
        model: nn.Module,
        tensors: PartTensors,
        candidates: Sequence[Candidate],
        journal: Journal,
    ):
        self._modules, self._tensors = dict(packable_modules(model)), tensors
        self._candidates, self._journal = candidates, journal
        self._packed = [install_empty(c.dense.skeleton(), c.specs) for c in candidates]
        self._readers = [candidate.store.reader(candidate.parts) for candidate in candidates]
        self._levels = [str(candidate.recipe) for candidate in candidates]
        self._first = _first_names(self._modules)

    def missing(self, structure: Structure) -> dict[str, list[str]]:
        """By part, layers whose rows aren't known yet; tied ones under the names of all."""
        found: dict[str, list[str]] = {}
        for name in self._modules:
            if self._entry(name) is None:
                found.setdefault(structure.block_of(name), []).append(name)
        return found

    def add(self, name: str, sensitivity: Sensitivity | None) -> None:
        """Journal what a layer's weight takes and loses at each level."""
        if self._entry(name) is not None:
            return
        module = self._modules[name]
        assert isinstance(module.weight, Tensor)
        weight = matrix_of(module, self._tensors.stored(module.weight).detach())
        names = [other for other, first in self._first.items() if first == self._first[name]]
        levels = range(len(self._packed))
        cells = [self._cell(level, names, weight, sensitivity) for level in levels]
        row = {"whole": weight.nbytes, "known": sensitivity is not None, "cells": cells}
        self._journal.add("levels", layer=self._first[name], levels=self._levels, **row)

    def losses(self, level: int) -> dict[str, float]:
        """Estimated of each layer at a level, by the name that its weight is known by."""
        rate = self._average_rate()
        return {n: float(self._row(n, rate)[1][level]) for n in dict.fromkeys(self._first.values())}

    def table(
        self, structure: Structure, kls: Sequence[float | None], factors: Mapping[str, float]
    ) -> LevelTable:
        """All rows together, one a unit; estimates times factors by layer, 1 where none is."""
        rate = self._average_rate()
        units, sizes, losses = [], [], []
        for unit in structure.units:
            layers = dict.fromkeys(self._first[name] for name in unit.names)
            own = [(*self._row(name, rate), factors.get(name, 1.0)) for name in layers]
            units.append(unit.names)
            sizes.append(torch.stack([size for size, _, _ in own]).sum(0))
            losses.append(torch.stack([loss * factor for _, loss, factor in own]).sum(0))
        estimated = torch.stack(losses)
        for level, kl in enumerate(kls):
            total = float(estimated[:, level].sum())
            if kl is not None and kl > 0 and total > 0:
                estimated[:, level] *= kl / total
        recipes = tuple(candidate.recipe for candidate in self._candidates)
        return LevelTable(tuple(units), recipes, torch.stack(sizes), estimated)

    def _entry(self, name: str) -> dict[str, Any] | None:
        return self._journal.find("levels", layer=self._first[name], levels=self._levels)

    def _row(self, name: str, rate: float) -> tuple[Tensor, Tensor]:
        entry = self._entry(name)
        assert entry is not None, "all rows were added"
        known, cells = entry["known"], entry["cells"]
        losses = [c["loss"] if known else rate * c["error"] * entry["whole"] for c in cells]
        sizes = torch.tensor([cell["size_bytes"] for cell in cells])
        return sizes, torch.tensor(losses, dtype=torch.float64)

    def _average_rate(self) -> float:
        """Loss for a relative error of 1 in a byte's weights, over all rows that are known."""
        lost, weighted = 0.0, 0.0
        for name in dict.fromkeys(self._first.values()):
            entry = self._entry(name)
            if entry is not None and entry["known"]:
                lost += sum(cell["loss"] for cell in entry["cells"])
                weighted += sum(cell["error"] for cell in entry["cells"]) * entry["whole"]
        return lost / weighted if weighted else 1.0

    def _cell(
        self, level: int, names: Sequence[str], weight: Tensor, sensitivity: Sensitivity | None
    ) -> dict[str, float]:
        """What a weight takes and loses at a level, and its relative squared error.

        Args:
            level: Index of it.
            names: Of all layers that hold the weight; one of them stores it.
            weight: Of the original.
            sensitivity: Of the layer.
        """
        packed = self._weight(level, names)
        if packed is None:
            return {"size_bytes": weight.nbytes, "error": 0.0, "loss": 0.0}
        records = self._candidates[level].layers
        size_bytes = sum(record.size_bytes for record in records if record.name in names)
        whole = weight.flatten(1).float()
        error = packed.dequantize().flatten(1).float().sub_(whole)
        relative = float(error.square().sum() / whole.square().sum().clamp(min=1e-30))
        loss = 0.0 if sensitivity is None else estimated_kl(sensitivity, error)
        packed.to("meta")
        return {"size_bytes": size_bytes, "error": relative, "loss": loss}

    def _weight(self, level: int, names: Sequence[str]) -> PackedWeight | None:
        """A weight as a level packed it, read from disk; None if it left it as it was."""
        reader = self._readers[level]
        for name in names:
            prefix = f"{name}.packed."
            keys = [key for key in reader.names() if key.startswith(prefix)]
            own = {key.removeprefix(prefix): reader.read(key) for key in keys}
            if own:
                packed = self._packed[level].get_submodule(name).packed
                assert isinstance(packed, PackedWeight)
                packed.load_state_dict(own, assign=True)
                return packed
        return None


def _first_names(modules: dict[str, nn.Module]) -> dict[str, str]:
    """For each layer the one that its weight is known by: the last of those tied to it.

    Tied embeddings stand first, and only the head's inputs are observed.
    """
    owners = {id(module.weight): name for name, module in modules.items()}
    return {name: owners[id(module.weight)] for name, module in modules.items()}
