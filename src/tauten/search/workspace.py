"""Where a run keeps its trials until one becomes the artifact."""

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from tauten.core.journal import Journal
from tauten.core.measurement import LayerRecord
from tauten.core.recipe import Recipe
from tauten.core.technique import BlockTuning
from tauten.models.artifact import packed_source
from tauten.models.calibration import Calibration, CalibrationBatch
from tauten.models.coding import code_tensors, coded_record
from tauten.models.loader import Loader, tensor_slots
from tauten.models.reader import SafetensorsReader
from tauten.models.safetensors_writer import Joined
from tauten.models.source import Source
from tauten.models.store import BlockStore
from tauten.models.structure import Structure, find_structure
from tauten.models.walk import Walk
from tauten.search.shaping import shape_stored
from tauten.search.trainer import Trainer
from tauten.search.zeros import share_out_zeros

BLOCK_BATCHES = 64  # that techniques which fit blocks take by turns


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
        memory_bytes: Its tensors in memory.
        journal: Of the run.
    """

    recipe: Recipe
    source: Source
    dense: Source
    shaping: tuple[dict[str, Any], ...]
    blocks: tuple[str, ...]
    specs: dict[str, dict[str, Any]]
    layers: list[LayerRecord]
    weights: Joined
    memory_bytes: int
    journal: Journal


class Workspace:
    """The folder of one run: its journal and a folder for each trial.

    Args:
        folder: Made if absent; the caller holds it exclusively.
        source: The model.
        structure: Of the model.
        run: What identifies the run.
        calibration: Batches for techniques that look at data.
        trainer: For techniques that train; by default they imitate the model on those batches.
    """

    def __init__(
        self,
        folder: Path,
        source: Source,
        structure: Structure,
        run: dict[str, Any],
        calibration: Sequence[CalibrationBatch] = (),
        trainer: Trainer | None = None,
    ):
        self.folder, self.source, self.structure = folder, source, structure
        self._calibration = calibration
        self._trainer = trainer or Trainer(source, calibration, calibration)
        self.journal = Journal(folder / "journal.jsonl", run)

    def apply(self, recipe: Recipe) -> Candidate:
        """Apply a recipe, continuing where a killed run stopped."""
        trial = recipe_id(recipe)
        shaped = shape_stored(
            self.source, recipe.shaping, self._store_of_step(recipe), self._trainer
        )
        dense, structure = shaped.source, self.structure
        model = dense.skeleton()
        if shaped.facts:
            structure = find_structure(model)
        store = BlockStore(self.folder / trial, self.journal, trial)
        loader = dense.loader(model, structure.blocks) if dense.reader else None
        calibration = calibration_for(recipe, self._calibration)
        recipe = self._with_zeros(recipe, trial, model, structure, loader)
        walk = Walk(model, structure, recipe, loader, store, calibration)
        walk.run()
        if recipe.tunings:
            store = self._tune(recipe, trial, dense, walk, store)
        plain, layers = store.joined(walk.parts), walk.layers
        if recipe.entropy_coding:
            store, saved = self._code(trial, dense, walk, store)
            layers = [coded_record(record, saved) for record in layers]
        return Candidate(
            recipe=recipe,
            source=_packed(dense, walk, store),
            dense=dense,
            shaping=shaped.facts,
            blocks=structure.blocks,
            specs=walk.specs,
            layers=layers,
            weights=store.joined(walk.parts),
            memory_bytes=plain.tensor_bytes,
            journal=self.journal,
        )

    def _store_of_step(self, recipe: Recipe) -> Callable[[int], BlockStore]:
        """Recipes that begin alike share what those steps have made."""

        def store_of(number: int) -> BlockStore:
            begun = recipe_id(Recipe(recipe.steps[:number]))
            return BlockStore(self.folder / begun / "shaped", self.journal, f"{begun} shaped")

        return store_of

    def _with_zeros(
        self,
        recipe: Recipe,
        trial: str,
        model: nn.Module,
        structure: Structure,
        loader: Loader | None,
    ) -> Recipe:
        """A recipe whose zeros are shared out; journaled, so that a resumed run packs alike."""
        known = self.journal.find("zeros", of=trial)
        if known is not None:
            kinds = {step.technique.name: type(step.technique) for step in recipe.steps}
            return Recipe.from_dict(known["recipe"], kinds)
        made = share_out_zeros(recipe, model, structure, loader, self._calibration)
        if made != recipe:
            self.journal.add("zeros", of=trial, recipe=made.to_dict())
        return made

    def _tune(
        self, recipe: Recipe, trial: str, dense: Source, walk: Walk, store: BlockStore
    ) -> BlockStore:
        """Train the packed model; what comes out stands beside what went in."""
        tuned = BlockStore(store.folder / "tuned", self.journal, f"{trial} tuned")
        if all(tuned.finished(part) for part in walk.parts):
            return tuned
        model = _packed(dense, walk, store).open()
        self._trainer.run(recipe.tunings, model, tuned.folder)
        state = model.state_dict()
        for part in walk.parts:
            before = store.read(part)
            tensors = {name: state[name].to(old.dtype) for name, old in before.items()}
            tuned.write(part, tensors)
        return tuned

    def _code(
        self, trial: str, dense: Source, walk: Walk, store: BlockStore
    ) -> tuple[BlockStore, dict[str, int]]:
        """Entropy-code what was packed, a part at a time, beside it.

        Returns:
            Where it stands, and the bytes saved by tensor.
        """
        coded = BlockStore(store.folder / "coded", self.journal, f"{trial} coded")
        slots = tensor_slots(_packed(dense, walk, store).skeleton())
        saved: dict[str, int] = {}
        for part in walk.parts:
            done = coded.finished(part)
            if done is None:
                tensors, less = code_tensors(store.read(part), slots)
                coded.write(part, tensors, saved_bytes=less)
            else:
                less = done["saved_bytes"]
            saved |= less
        return coded, saved

    def discard(self, recipe: Recipe) -> None:
        """Free the disk of a trial that can't be chosen any more."""
        shutil.rmtree(self.folder / recipe_id(recipe), ignore_errors=True)


def _packed(dense: Source, walk: Walk, store: BlockStore) -> Source:
    reader = SafetensorsReader([store.file(part) for part in walk.parts])
    return packed_source(dense, walk.specs, reader, "candidate")


def calibration_for(recipe: Recipe, batches: Sequence[CalibrationBatch]) -> Calibration | None:
    """What a recipe's techniques look at; None if there is no data."""
    if not batches:
        return None
    techniques = [step.technique for step in recipe.steps]
    correct = any(getattr(t, "needs_shift", False) for t in techniques)
    counted = any(getattr(t, "needs_magnitudes", False) for t in techniques)
    fits = any(isinstance(t, BlockTuning) or getattr(t, "fits_blocks", False) for t in techniques)
    if fits:
        rows = max(1, sum(batch.rows for batch in batches) // BLOCK_BATCHES)
        batches = [piece for batch in batches for piece in batch.split(rows)]
    return Calibration(batches, correct=correct, counted=counted, fits_blocks=fits)


def recipe_id(recipe: Recipe) -> str:
    """Short name of a recipe, the same in every run."""
    text = json.dumps(recipe.to_dict(), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
