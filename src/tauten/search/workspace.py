"""Where a run keeps its trials until one becomes the artifact."""

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from tauten.core.errors import InputError
from tauten.core.files import make_folder, whole_file
from tauten.core.journal import Journal
from tauten.core.measurement import LayerRecord
from tauten.core.recipe import Recipe
from tauten.core.technique import BlockTuning
from tauten.distributed.wire import to_bytes, to_tensor
from tauten.models.calibration import Calibration, CalibrationBatch
from tauten.models.coding import code_tensors, coded_record
from tauten.models.companions import is_inside
from tauten.models.loader import Loader, tensor_slots
from tauten.models.records import read_record
from tauten.models.source import Source
from tauten.models.store import BlockStore
from tauten.models.structure import Structure, find_structure
from tauten.models.walk import Walk
from tauten.search.candidate import Candidate, cut_part, kept_in, packed
from tauten.search.observations import KeptCalibration, can_share
from tauten.search.resume import forget_what_changed
from tauten.search.shaping import Shaped, shape_stored
from tauten.search.trainer import Trainer
from tauten.search.zeros import share_out_zeros

OBSERVED = "observed"  # folder of what layers of the original see
BLOCK_BATCHES = 64  # that techniques which fit blocks take by turns


class Workspace:
    """The folder of one run: its journal and a folder for each trial.

    Args:
        folder: Made if absent; the caller holds it exclusively.
        source: The model.
        structure: Of the model.
        run: What identifies the run.
        calibration: Batches for techniques that look at data.
        trainer: For techniques that train; by default they imitate the model on those batches.
        calibrate: Gives a recipe its batches; by default `calibration_for`.
    """

    def __init__(
        self,
        folder: Path,
        source: Source,
        structure: Structure,
        run: dict[str, Any],
        calibration: Sequence[CalibrationBatch] = (),
        trainer: Trainer | None = None,
        calibrate: Callable[..., Calibration | None] | None = None,
    ):
        self.folder, self.source, self.structure = folder, source, structure
        self._calibration, self._calibrate = calibration, calibrate or calibration_for
        self._trainer = trainer or Trainer(source, calibration, calibration)
        forget_what_changed(folder, folder / "journal.jsonl", run)
        self.journal = Journal(folder / "journal.jsonl", run)
        self._warned: set[str] = set()

    def apply(self, recipe: Recipe) -> Candidate:
        """Apply a recipe, continuing where a killed run stopped."""
        walk, shaped, store = self._walk(recipe)
        walk.run()
        dense, parts = shaped.source, tuple(walk.parts)
        made = Candidate(
            recipe=walk.recipe,
            source=packed(dense, walk.specs, parts, store),
            dense=dense,
            shaping=shaped.facts,
            blocks=walk.structure.blocks,
            specs=walk.specs,
            layers=walk.layers,
            weights=store.joined(list(parts)),
            journal=self.journal,
            store=store,
            parts=parts,
        )
        return self._finished(made)

    def pack(self, recipe: Recipe, parts: Sequence[str]) -> None:
        """Pack some parts, as `Walk.run` does, and keep them here."""
        walk, *_ = self._walk(recipe)
        walk.run(parts)

    def _walk(self, recipe: Recipe) -> tuple[Walk, Shaped, BlockStore]:
        """A walk that is yet to run, over the model as the recipe shapes it, and its store."""
        trial = _plain_id(recipe)
        shaped = shape_stored(
            self.source, recipe.shaping, self._store_of_step(recipe), self._trainer
        )
        dense, structure = shaped.source, self.structure
        model = dense.skeleton()
        if shaped.facts:
            structure = find_structure(model)
        store = BlockStore(self.folder / trial, self.journal, trial)
        loader = dense.loader(model, structure.blocks) if dense.reader else None
        calibration = self._calibrate(recipe, self._calibration)
        if type(calibration) is Calibration and can_share(recipe, model):
            calibration = KeptCalibration(self._calibration, self.folder / OBSERVED)
        recipe = self._with_zeros(recipe, trial, model, structure, loader)
        walk = Walk(model, structure, recipe, loader, store, calibration, self._warned)
        return walk, shaped, store

    def cut(self, recipe: Recipe, parents: Mapping[str, Candidate]) -> Candidate:
        """Put a candidate together from the layers of others, bit for bit as `apply` makes it.

        Args:
            recipe: Gives each layer the technique that its parent was packed by.
            parents: By layer; all of the original model, each layer packed by itself.
        """
        trial, first = _plain_id(recipe), next(iter(parents.values()))
        store = BlockStore(self.folder / trial, self.journal, trial)
        specs: dict[str, dict[str, Any]] = {}
        layers: list[LayerRecord] = []
        for part in first.parts:
            done = store.finished(part)
            if done is None:
                done = cut_part(part, store, recipe, parents)
            specs |= done["specs"]
            layers += [read_record(raw) for raw in done["layers"]]
        cut = dataclasses.replace(first, recipe=recipe, specs=specs, layers=layers)
        return self._finished(kept_in(store, cut))

    def _finished(self, made: Candidate) -> Candidate:
        """A candidate that is all packed, after the steps that come then."""
        if made.recipe.tunings:
            made = self._tuned(made)
        return self._coded(made) if made.recipe.entropy_coding else made

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

    def _tuned(self, plain: Candidate) -> Candidate:
        """A trained candidate, which stands beside what it was trained from."""
        trial, parts = _plain_id(plain.recipe), plain.parts
        store = BlockStore(plain.store.folder / "tuned", self.journal, f"{trial} tuned")
        if not all(store.finished(part) for part in parts):
            model = plain.source.open()
            self._trainer.run(plain.recipe.tunings, model, store.folder)
            state = model.state_dict()
            for part in parts:
                before = plain.store.read(part)
                store.write(part, {name: state[name].to(t.dtype) for name, t in before.items()})
        return kept_in(store, plain)

    def _coded(self, plain: Candidate) -> Candidate:
        """A candidate whose file is entropy-coded, a part at a time, beside it."""
        trial, parts = _plain_id(plain.recipe), list(plain.parts)
        coded = BlockStore(plain.store.folder / "coded", self.journal, f"{trial} coded")
        slots = tensor_slots(plain.source.skeleton())
        saved: dict[str, int] = {}
        for part in parts:
            done = coded.finished(part)
            if done is None:
                tensors, less = code_tensors(plain.store.read(part), slots)
                coded.write(part, tensors, saved_bytes=less)
            else:
                less = done["saved_bytes"]
            saved |= less
        return dataclasses.replace(
            plain,
            source=packed(plain.dense, plain.specs, parts, coded),
            layers=[coded_record(record, saved) for record in plain.layers],
            weights=coded.joined(parts),
        )

    def missing(self, recipe: Recipe) -> list[str]:
        """Parts of the model that a recipe isn't applied to yet."""
        trial = _plain_id(recipe)
        store = BlockStore(self.folder / trial, self.journal, trial)
        return [part for part in (*self.structure.blocks, "") if store.finished(part) is None]

    def handed_out(self, known: int) -> dict[str, Any]:
        """All files, and what the journal says after the first `known` entries, to travel."""
        found = (file for file in sorted(self.folder.glob("*/**/*")) if file.is_file())
        names = (file.relative_to(self.folder) for file in found)
        kept = [name for name in names if name.parts[0] != OBSERVED]
        files = {str(name): to_tensor((self.folder / name).read_bytes()) for name in kept}
        return {"files": files, "entries": self.journal.entries[known:]}

    def adopt(self, made: Mapping[str, Any]) -> None:
        """Take in what another workspace of the same run has handed out."""
        for name, content in made["files"].items():
            if not is_inside(name):
                raise InputError(f"a worker handed out {name!r}: expected a file of its folder")
            file = self.folder / name
            make_folder(file.parent)
            with whole_file(file) as opened:
                opened.write(to_bytes(content))
        for entry in made["entries"]:
            self.journal.add(**entry)

    def discard(self, recipe: Recipe) -> None:
        """Free the disk of a trial that can't be chosen any more."""
        shutil.rmtree(self.folder / _plain_id(recipe), ignore_errors=True)


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


def _plain_id(recipe: Recipe) -> str:
    """Of what is packed: coding it comes after, in a folder inside."""
    return recipe_id(dataclasses.replace(recipe, entropy_coding=False))


def recipe_id(recipe: Recipe) -> str:
    """Short name of a recipe, the same in every run."""
    text = json.dumps(recipe.to_dict(), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
