"""The streaming walk: apply a recipe to a model, one part at a time.

A part is a block, or all that lies outside the blocks. With a store, each part's packed tensors go
to disk as soon as they are made, and the model keeps only their shapes; a part that the store
already holds is skipped. So peak memory is one part's packed tensors and the temporaries of one
weight, and a killed walk goes on where it stopped.
"""

import contextlib
import functools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from tauten.core.errors import InputError, NotApplicableError
from tauten.core.inputs import LayerInputs
from tauten.core.measurement import LayerRecord
from tauten.core.progress import track
from tauten.core.recipe import Recipe
from tauten.core.technique import CalibratedTechnique, ScalingTechnique, WeightTechnique
from tauten.formats.packed import PackedWeight
from tauten.models import packing
from tauten.models.allocator import return_freed_memory
from tauten.models.calibration import Calibration
from tauten.models.folding import Folding, rescale
from tauten.models.loader import Loader, Slot, place, tensor_slots
from tauten.models.source import shared_copy
from tauten.models.store import BlockStore
from tauten.models.structure import Structure, other_matrices, packable_modules
from tauten.runtime.modules import PackedEmbedding, PackedModule

ERROR_CHUNK = 2**21  # weights compared at once


class Walk:
    """One pass of a recipe over a model.

    Args:
        model: Changed in place: a skeleton with a loader, or a copy that shares tensors.
        structure: Of the model.
        recipe: What to do with each layer.
        loader: Source of empty tensors; None where all tensors are in memory.
        store: Where parts go; None keeps them in the model.
        calibration: Data for techniques that look at it.
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
    ):
        self.model, self.structure, self.recipe = model, structure, recipe
        self._loader, self._store = loader, store
        calibrated = any(isinstance(s.technique, CalibratedTechnique) for s in recipe.steps)
        self._calibration = calibration if calibrated else None
        # Weights are kept beside their packed form, so that no other tensor takes over their id.
        self._shared: dict[int, tuple[PackedWeight, str, Tensor]] = {}
        self._kept_weights: dict[int, tuple[str, Tensor]] = {}
        self._unit_of = {name: unit.names[0] for unit in structure.units for name in unit.names}
        self._names_of_unit = {unit.names[0]: unit.names for unit in structure.units}
        self._folding = Folding()
        self._scaled: dict[str, str] = {}  # layers with scaled columns: what was divided
        self.layers: list[LayerRecord] = []
        self.specs: dict[str, dict[str, Any]] = {}

    @property
    def parts(self) -> list[str]:
        """All parts in the order they are walked; what is outside of blocks sees their outputs."""
        return [*self.structure.blocks, ""]

    def run(self) -> nn.Module:
        """Walk all parts.

        Returns:
            The packed model; with a store its packed tensors are on the meta device.
        Raises:
            InputError: No layer at all was packed.
        """
        self.model.eval()  # before it is run: batch norms would learn from calibration data
        changed = self._prepare()
        members: dict[str, list[tuple[str, nn.Module]]] = {part: [] for part in self.parts}
        for name, module in packable_modules(self.model):
            members[self.structure.block_of(name)].append((name, module))
        if self._calibration is not None:
            names = [name for part in self.parts for name, _ in members[part]]
            names = [name for name in names if self._is_calibrated(name)]
            self._calibration.start(self.model, self.structure.blocks, self._filled, names)
        for part in track(self.parts, "packing blocks", len(self.parts)):
            done = self._store.finished(part) if self._store else None
            if done is None:
                self._pack_part(part, members[part])
            else:
                self.specs |= done["specs"]
                self.layers += [_layer_record(raw) for raw in done["layers"]]
                self._pass_finished(part, done["specs"])
        if len(self.recipe.shaping) < len(self.recipe.steps) and not self.specs:
            reasons = {record.reason for record in self.layers} or {"it has no packable layer"}
            raise InputError(
                f"{self.recipe} changed nothing in {type(self.model).__name__}: "
                f"{'; '.join(sorted(reasons))}"
            )
        self.specs = changed | self.specs
        return self.model

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
            with self._filled(self.parts):
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
            self._kept(name, weight, "kept: no layer of a kind that can be packed holds it")
            for name, weight in other_matrices(self.model)
            if self.structure.block_of(name) == part
        ]
        names = [name for name, _ in members if self._is_calibrated(name)]
        seen = self._calibration.observe(part, names) if self._calibration else {}
        seen = self._fold(part, seen)
        for name, module in members:
            record, packed = self._pack_layer(name, module, self._inputs_of(name, seen))
            if self._store is not None:
                return_freed_memory()
            records.append(record)
            if packed is not None:
                new_of_old[module] = packed
                owner = self._shared[id(module.weight)][1]
                specs[name] = packing.module_spec(packed, None if owner == name else owner)
        records += others
        if self.model in new_of_old:  # the model itself is one layer
            self.model = new_of_old[self.model]
        packing.replace_modules(self.model, new_of_old)
        if self._calibration is not None:
            self._calibration.advance(part)
        if self._store is not None:
            self._save_part(part, specs, records)
        self.specs |= specs
        self.layers += records

    def _is_calibrated(self, name: str) -> bool:
        """Whether a technique looks at the inputs of a layer, or of one tied to it."""
        steps = map(self.recipe.step_for, self._names_of_unit[self._unit_of[name]])
        return any(s is not None and isinstance(s[1].technique, CalibratedTechnique) for s in steps)

    def _fold(self, part: str, seen: dict[str, LayerInputs]) -> dict[str, LayerInputs]:
        """Scale channels inside a block where techniques wish; its layers' inputs are then others.

        What is scaled takes the place of the model's tensors, in the dtype that it computes in.
        """
        steps = {name: self.recipe.step_for(name) for name in seen}
        techniques = {
            name.removeprefix(f"{part}."): found[1].technique
            for name, found in steps.items()
            if found is not None and isinstance(found[1].technique, ScalingTechnique)
        }
        if not techniques or self._calibration is None or not self._calibration.calls.get(part):
            return seen
        with self._filled([part]), torch.no_grad():
            block = self._calibration.dense(part, torch.float32)
            run = functools.partial(self._calibration.try_block, part)
            inner = {name.removeprefix(f"{part}."): found for name, found in seen.items()}
            folds, inner = rescale(block, self._folding.folds(block, run), techniques, inner)
            own = dict(self.model.get_submodule(part).named_parameters(remove_duplicate=False))
            dtypes = {f"{part}.{name}": tensor.dtype for name, tensor in own.items()}
        changed = {f"{part}.{n}": t for fold in folds for n, t in fold.tensors(block).items()}
        for slot in self._slots([part]):
            for name in set(slot.names) & set(changed):
                place(slot, changed[name].to(dtypes[name]))
        self._scaled |= {f"{part}.{n}": f.producer for f in folds for n in f.consumers}
        return {f"{part}.{name}": found for name, found in inner.items()}

    def _inputs_of(self, name: str, seen: dict[str, LayerInputs]) -> LayerInputs | None:
        """Inputs of a layer, or of one that its weight is tied to."""
        weight = self.model.get_submodule(name).weight
        for other in self._names_of_unit[self._unit_of[name]]:
            if other in seen and self.model.get_submodule(other).weight is weight:
                return seen[other]
        return None

    def _pack_layer(
        self, name: str, module: nn.Module, inputs: LayerInputs | None
    ) -> tuple[LayerRecord, PackedModule | None]:
        weight = module.weight
        assert isinstance(weight, Tensor)
        found = self.recipe.step_for(name)
        if found is None or not weight.is_floating_point():
            reason = (
                "kept: no step of the recipe is for it" if found is None else "kept: not floating"
            )
            return self._kept(name, weight, reason), None
        technique = found[1].technique
        assert isinstance(technique, WeightTechnique), "other techniques don't reach the walk"
        try:
            step = technique.activation_step(inputs)
            if id(weight) in self._shared:
                packed, owner, _ = self._shared[id(weight)]
                record = self._record(name, weight, packed, 0, 0.0, f"tied to {owner}: stored once")
                return record, packing.packed_layer(
                    module, packed, technique.activation_dtype, step
                )
            matrix = packing.matrix_of(module, self._stored(weight).detach())
            packed = technique.encode(matrix, inputs)  # type: ignore[assignment]
        except NotApplicableError as error:
            return self._kept(name, weight, f"kept: {error}"), None
        if packed.size_bytes >= matrix.nbytes:
            return self._kept(name, weight, "kept: packing would not make it smaller"), None
        self._shared[id(weight)] = packed, name, weight
        reason = f"step {found[0]} of the recipe is for {found[1].where}"
        if isinstance(technique, ScalingTechnique):
            maker = self._scaled.get(name)
            reason += f"; its columns are scaled against {maker}" if maker else "; not scaled"
        if inputs is not None and inputs.note:
            reason += f"; {inputs.note}"
        error_ratio = relative_error(matrix, packed)
        record = self._record(name, weight, packed, matrix.nbytes, error_ratio, reason)
        layer = packing.packed_layer(module, packed, technique.activation_dtype, step)
        change = technique.bias_change(matrix, packed, inputs)
        if change is not None and not isinstance(layer, PackedEmbedding):
            bias = change if layer.bias is None else self._stored(layer.bias).detach() + change
            layer.bias = nn.Parameter(bias.to(layer.dtype_like.dtype), requires_grad=False)
        return record, layer

    def _stored(self, tensor: Tensor) -> Tensor:
        """A tensor of the model as its source holds it."""
        if not tensor.is_meta:
            return tensor
        assert self._loader is not None, "empty tensors come with a loader"
        return self._loader.raw(self._loader.slot_of(tensor))

    def _save_part(
        self, part: str, specs: dict[str, dict[str, Any]], records: list[LayerRecord]
    ) -> None:
        assert self._store is not None
        slots = self._slots([part])
        tensors = {slot.names[0]: self._stored(slot.empty).detach() for slot in slots}
        layers = [asdict(record) for record in records]
        self._store.write(part, tensors, specs=specs, layers=layers)
        self._empty(specs)

    def _pass_finished(self, part: str, specs: dict[str, dict[str, Any]]) -> None:
        """Bring the calibration data through a part that an earlier run has packed."""
        if self._calibration is None or not part:
            return
        assert self._store is not None, "only a store remembers finished parts"
        packing.install_empty(self.model, specs)
        tensors = self._store.read(part)
        for name in (n for n, spec in specs.items() if "tied_to" not in spec["weight"]):
            packed = self.model.get_submodule(name).packed
            assert isinstance(packed, PackedWeight)
            prefix = f"{name}.packed."
            own = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
            packed.load_state_dict(own, assign=True)
        for name in specs:
            layer = self.model.get_submodule(name)
            layer.step = tensors.get(f"{name}.step", layer.step)
            if f"{name}.bias" in tensors:  # rather than the original's: it may have been changed
                layer.bias = nn.Parameter(tensors[f"{name}.bias"], requires_grad=False)
        # Not from the source: a technique may have scaled what isn't packed.
        slots = [slot for slot in self._slots([part]) if not slot.packed]
        for slot in slots:
            place(slot, self._cast(tensors[slot.names[0]]))
        self._calibration.advance(part)
        for slot in slots:
            place(slot, slot.empty)
        self._empty(specs)

    def _empty(self, names: Iterable[str]) -> None:
        """Keep only the shapes of packed weights."""
        for name in names:
            module = self.model.get_submodule(name)
            assert isinstance(module, PackedModule)
            module.packed.to("meta")

    def _slots(self, parts: Sequence[str]) -> list[Slot]:
        """Tensors of some parts, as the model is now."""
        slots = []
        for slot in tensor_slots(self.model):
            owners = {self.structure.block_of(name) for name in slot.names}
            if (owners.pop() if len(owners) == 1 else "") in parts:
                slots.append(slot)
        return slots

    @contextlib.contextmanager
    def _filled(self, parts: Sequence[str]) -> Iterator[None]:
        """Load the empty tensors of some parts for a while."""
        slots = [slot for slot in self._slots(parts) if slot.empty.is_meta and not slot.packed]
        for slot in slots:
            place(slot, self._cast(self._stored(slot.empty)))
        try:
            yield
        finally:
            for slot in slots:
                place(slot, slot.empty)

    def _cast(self, tensor: Tensor) -> Tensor:
        """A stored tensor in the dtype that the model computes in."""
        return tensor if self._loader is None else self._loader.cast(tensor)

    def _kept(self, name: str, weight: Tensor, reason: str) -> LayerRecord:
        owner, _ = self._kept_weights.setdefault(id(weight), (name, weight))
        if owner != name:
            return self._record(name, weight, None, 0, 0.0, f"tied to {owner}: stored once")
        return self._record(name, weight, None, self._stored_bytes(weight), 0.0, reason)

    def _stored_bytes(self, weight: Tensor) -> int:
        return self._stored(weight).nbytes if weight.is_meta else weight.nbytes

    def _record(
        self,
        name: str,
        weight: Tensor,
        packed: PackedWeight | None,
        original_bytes: int,
        error: float,
        reason: str,
    ) -> LayerRecord:
        dtype = str(weight.dtype).removeprefix("torch.")
        return LayerRecord(
            name=name,
            unit=self._unit_of.get(name, name),
            shape=tuple(weight.shape),
            format=dtype if packed is None else packed.label,
            bits_per_weight=round(8 * self._stored_bytes(weight) / weight.numel(), 3)
            if packed is None
            else round(packed.bits_per_weight, 3),
            original_bytes=original_bytes,
            size_bytes=original_bytes
            if packed is None
            else packed.size_bytes * (original_bytes > 0),
            error=error,
            reason=reason,
        )


def relative_error(matrix: Tensor, packed: PackedWeight) -> float:
    """|W - W'| / |W| (Frobenius), 0 for a zero weight: matrix (out, in, ...) floating."""
    flat = matrix.flatten(1)
    step = max(1, ERROR_CHUNK // max(1, flat.shape[1]))
    lost = total = 0.0
    for start in range(0, flat.shape[0], step):
        rows = slice(start, start + step)
        exact = flat[rows].float()
        lost += float((exact - packed.dequantize_rows(rows)).square().sum())
        total += float(exact.square().sum())
    return round((lost / total) ** 0.5, 6) if total else 0.0


def _layer_record(raw: dict[str, Any]) -> LayerRecord:
    return LayerRecord(**{**raw, "shape": tuple(raw["shape"])})
