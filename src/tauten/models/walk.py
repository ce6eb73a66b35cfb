"""The streaming walk: apply a recipe to a model, one part at a time.

A part is a block, or all that lies outside the blocks. With a store, each part's packed tensors go
to disk as soon as they are made, and the model keeps only their shapes; a part that the store
already holds is skipped. So peak memory is one part's packed tensors and the temporaries of one
weight, and a killed walk goes on where it stopped.
"""

from collections.abc import Collection
from dataclasses import asdict, replace
from typing import Any

from torch import nn

from tauten.core.errors import InputError
from tauten.core.figures import listed
from tauten.core.inputs import LayerInputs
from tauten.core.measurement import LayerRecord
from tauten.core.progress import track
from tauten.core.recipe import Recipe
from tauten.core.technique import BlockTechnique, CalibratedTechnique, ScalingTechnique
from tauten.models import packing
from tauten.models.allocator import return_freed_memory
from tauten.models.block_steps import BlockSteps
from tauten.models.calibration import Calibration
from tauten.models.layer_packer import LayerPacker
from tauten.models.loader import Loader
from tauten.models.part_tensors import PartTensors
from tauten.models.reach import TUNED, check_finite, check_reach, unseen_reason
from tauten.models.records import read_record, relative_error
from tauten.models.source import shared_copy
from tauten.models.store import BlockStore
from tauten.models.structure import PACKABLE, Structure, other_matrices, packable_modules
from tauten.runtime.modules import PackedModule


class Walk:
    """One pass of a recipe over a model.

    Args:
        model: Changed in place: a skeleton with a loader, or a copy that shares tensors.
        structure: Of the model.
        recipe: What to do with each layer.
        loader: Source of empty tensors; None where all tensors are in memory.
        store: Where parts go; None keeps them in the model.
        calibration: Data for techniques that look at it.
        warned: Warnings that other walks of the run have given.
    Attributes:
        layers: What was decided for each layer, in model order within its part.
        specs: Description of each packed layer, enough to rebuild it empty.
    """

    def __init__(
        self,
        model: nn.Module,
        structure: Structure,
        recipe: Recipe,
        loader: Loader | None = None,
        store: BlockStore | None = None,
        calibration: Calibration | None = None,
        warned: set[str] | None = None,
    ):
        self.model, self.structure, self.recipe = model, structure, recipe
        self._tensors, self._store = PartTensors(model, structure, loader), store
        calibrated = any(step.technique.looks_at_inputs for step in recipe.steps)
        looks = calibrated or bool(recipe.block_tunings)
        self._calibration = calibration if looks else None
        self._block_steps = None
        if self._calibration is not None:
            self._block_steps = BlockSteps(recipe, self._tensors, self._calibration)
        self._warned = set() if warned is None else warned
        self._all_zero: set[str] = set()  # layers that saw nothing else
        self._scarce: dict[str, LayerInputs] = {}  # of layers that saw too few tokens
        self._unit_of = {name: unit.names[0] for unit in structure.units for name in unit.names}
        self._names_of_unit = {unit.names[0]: unit.names for unit in structure.units}
        self._packer = LayerPacker(recipe, self._tensors, self._unit_of)
        self.layers: list[LayerRecord] = []
        self.specs: dict[str, dict[str, Any]] = {}

    @property
    def parts(self) -> list[str]:
        """All parts in the order they are walked; what is outside of blocks sees their outputs."""
        return [*self.structure.blocks, ""]

    def run(self, only: Collection[str] | None = None) -> nn.Module:
        """Walk all parts.

        Args:
            only: Parts to pack, of a recipe that packs layers apart, into the store; then all else
                stays as it is.
        Returns:
            The packed model; with a store its packed tensors are on the meta device.
        Raises:
            InputError: No layer at all was packed, or data is missing or without effect.
        """
        self.model.eval()  # before it is run: batch norms would learn from calibration data
        self._check_patterns()
        changed = self._prepare()
        if self._calibration is None and self.recipe.block_tunings:
            raise InputError(f"{self.recipe.block_tunings[0].name} needs data: pass data=...")
        done = {part: self._store.finished(part) if self._store else None for part in self.parts}
        left = [p for p in self.parts if done[p] is None and (only is None or p in only)]
        members: dict[str, list[tuple[str, nn.Module]]] = {part: [] for part in self.parts}
        for name, module in packable_modules(self.model):
            members[self.structure.block_of(name)].append((name, module))
        if self._calibration is not None and left:
            names = [n for part in left for n, _ in members[part] if self._is_calibrated(n)]
            self._calibration.start(self.model, self.structure.blocks, self._tensors.filled, names)
        for part in track(self.parts, "packing blocks", len(self.parts)):
            found = done[part]
            if found is not None:
                self.specs |= found["specs"]
                self.layers += [read_record(raw) for raw in found["layers"]]
            if left and part == left[0]:
                self._pack_part(part, members[part])
                left = left[1:]
            elif left:
                self._pass(part, found)
        if only is None:
            self._check()
        self.specs = changed | self.specs
        return self.model

    def _nothing_to_do(self) -> str:
        """Why a model has no layer to pack."""
        if any(True for _ in packing.packed_modules(self.model)):
            return "it is packed already: pass the original, or a recipe of all techniques"
        kinds = ", ".join(kind.__name__ for kind in PACKABLE)
        holders = sorted({record.held_by for record in self.layers if record.held_by})
        held = f"its weights are held by {', '.join(holders)}; " if holders else ""
        held += f"none of its layers is of a kind that can be packed ({kinds})"
        return f"{held}: pass a model with such layers"

    def _check_patterns(self) -> None:
        """Raise InputError where a recipe that packs names no layer at all."""
        names = [name for name, _ in packable_modules(self.model)]
        packs = len(self.recipe.shaping) < len(self.recipe.steps)
        if packs and names and not any(map(self.recipe.step_for, names)):
            raise InputError(
                f"{self.recipe} changed nothing in {type(self.model).__name__}: no layer has such "
                f"a name; its layers are {listed(names)}"
            )

    def _check(self) -> None:
        """Raise InputError, or warn, for a recipe that did less than it says."""
        packed = [record for record in self.layers if record.name in self.specs]
        if len(self.recipe.shaping) < len(self.recipe.steps) and not packed:
            has_layers = any(True for _ in packable_modules(self.model))
            reasons = {record.reason for record in self.layers if has_layers}
            reasons = reasons or {self._nothing_to_do()}
            raise InputError(
                f"{self.recipe} changed nothing in {type(self.model).__name__}: "
                f"{'; '.join(sorted(reasons))}"
            )
        has_data = self._calibration is not None
        check_reach(self.recipe, packed, has_data, self._scarce, self._warned)

    def _prepare(self) -> dict[str, dict[str, Any]]:
        """Let techniques change the model as a whole; what modules became, as `specs` say it."""
        specs: dict[str, dict[str, Any]] = {}
        run = self._calibration.run if self._calibration else None
        names = [name for name, _ in packable_modules(self.model)]
        for index, step in enumerate(self.recipe.steps, 1):
            technique = step.technique
            if not isinstance(technique, CalibratedTechnique) or not technique.prepares(self.model):
                continue
            found = {name: self.recipe.step_for(name) for name in names}
            own = [name for name, at in found.items() if at is not None and at[0] == index]
            with self._tensors.filled(self.parts):
                changed = technique.prepare_model(shared_copy(self.model), own, run)
            for name, new in changed.items():
                old = self.model.get_submodule(name)
                if spec := packing.change_spec(old, new):
                    specs[name] = spec
                packing.replace_modules(self.model, {old: new})
        return specs

    def _pack_part(self, part: str, members: list[tuple[str, nn.Module]]) -> None:
        new_of_old: dict[nn.Module, PackedModule] = {}
        records, specs = [], {}
        others = [
            self._packer.kept(name, weight, "no layer of a kind that can be packed holds it")
            for name, weight in other_matrices(self.model)
            if self.structure.block_of(name) == part
        ]
        names = [name for name, _ in members if self._is_calibrated(name)]
        seen, fitted = self._observe(part, names), {}
        if self._calibration is not None and self.recipe.apart:
            self._calibration.remember(part)
        if self._block_steps is not None:
            seen = self._block_steps.scale(part, seen)
            fitted = self._block_steps.fit(part, seen)
        for name, module in members:
            inputs = self._inputs_of(name, seen)
            remark = self._remark(name, module, inputs, name in fitted)
            record, packed = self._packer.pack(name, module, inputs, fitted.get(name), remark)
            if self._store is not None:
                return_freed_memory()
            records.append(record)
            if packed is not None:
                new_of_old[module] = packed
                owner = self._packer.shared[id(module.weight)][1]
                specs[name] = packing.module_spec(packed, None if owner == name else owner)
        records += others
        if self.model in new_of_old:  # the model itself is one layer
            self.model = self._tensors.model = new_of_old[self.model]
        packing.replace_modules(self.model, new_of_old)
        records = self._tune(part, members, records)
        if self._calibration is not None:
            self._calibration.advance(part)
        if self._store is not None:
            self._save_part(part, specs, records)
        self.specs |= specs
        self.layers += records

    def _observe(self, part: str, names: list[str]) -> dict[str, LayerInputs]:
        """What layers of a part see; those that see nothing but zeros are missing."""
        seen = self._calibration.observe(part, names) if self._calibration else {}
        check_finite(seen)
        self._all_zero |= {n for n, inputs in seen.items() if not bool(inputs.moment.any())}
        self._scarce |= {n: inputs for n, inputs in seen.items() if not inputs.suffices}
        return {name: inputs for name, inputs in seen.items() if name not in self._all_zero}

    def _tune(
        self, part: str, members: list[tuple[str, nn.Module]], records: list[LayerRecord]
    ) -> list[LayerRecord]:
        """Train a packed block; the records of its layers as they are then."""
        tuned = self._block_steps.tune(part) if self._block_steps is not None else []
        if not tuned:
            return records
        modules, changed = dict(members), []
        shared = self._packer.shared.values()
        weights = {owner: (packed, weight) for packed, owner, weight in shared}
        for record in records:
            if record.name in weights:
                packed, weight = weights[record.name]
                weight = self._tensors.stored(weight).detach()
                error = relative_error(packing.matrix_of(modules[record.name], weight), packed)
                reason = f"{record.reason}; {TUNED} {', '.join(tuned)}"
                record = replace(record, error=error, reason=reason)
            changed.append(record)
        return changed

    def _is_calibrated(self, name: str) -> bool:
        """Whether a technique looks at the inputs of a layer, or of one tied to it."""
        steps = map(self.recipe.step_for, self._names_of_unit[self._unit_of[name]])
        return any(step is not None and step[1].technique.looks_at_inputs for step in steps)

    def _inputs_of(self, name: str, seen: dict[str, LayerInputs]) -> LayerInputs | None:
        """Inputs of a layer, or of one that its weight is tied to."""
        weight = self.model.get_submodule(name).weight
        for other in self._names_of_unit[self._unit_of[name]]:
            if other in seen and self.model.get_submodule(other).weight is weight:
                return seen[other]
        return None

    def _remark(
        self, name: str, module: nn.Module, inputs: LayerInputs | None, fitted: bool
    ) -> str:
        """What else the report says of a layer once it is packed."""
        found, remark = self.recipe.step_for(name), ""
        if found is None:
            return remark
        technique = found[1].technique
        if isinstance(technique, ScalingTechnique):
            scaled = {} if self._block_steps is None else self._block_steps.scaled
            maker = scaled.get(name)
            remark = f"; its columns are scaled against {maker}" if maker else "; not scaled"
        if technique.looks_at_inputs and inputs is None:
            has_data = self._calibration is not None
            return f"{remark}; {unseen_reason(module, has_data, name in self._all_zero)}"
        if isinstance(technique, BlockTechnique) and technique.fits_blocks and not fitted:
            remark += "; packed by itself, not with its block"
        return f"{remark}; {inputs.note}" if inputs is not None and inputs.note else remark

    def _save_part(
        self, part: str, specs: dict[str, dict[str, Any]], records: list[LayerRecord]
    ) -> None:
        assert self._store is not None
        slots = self._tensors.slots([part])
        tensors = {slot.names[0]: self._tensors.stored(slot.empty).detach() for slot in slots}
        layers = [asdict(record) for record in records]
        self._store.write(part, tensors, specs=specs, layers=layers)
        self._tensors.empty(specs)

    def _pass(self, part: str, done: dict[str, Any] | None) -> None:
        """Bring the calibration data through a part that is packed already, or by others."""
        if self._calibration is None or not part:
            return
        self._calibration.observe(part, [])  # the original model's states pass the original
        if self.recipe.apart:
            self._calibration.remember(part)
            self._calibration.advance(part)
            return
        assert self._store is not None and done is not None, "it is in the store"
        packing.install_empty(self.model, done["specs"])
        with self._tensors.restored(part, done["specs"], self._store.read(part)):
            self._calibration.advance(part)
