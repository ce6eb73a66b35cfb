"""One layer of a walk: packed, tied to one that is packed, or kept; and why, for the report."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from tauten.core.dtypes import dtype_name
from tauten.core.errors import NotApplicableError
from tauten.core.inputs import LayerInputs
from tauten.core.measurement import LayerRecord
from tauten.core.recipe import Recipe
from tauten.core.technique import WeightTechnique
from tauten.formats.packed import PackedWeight
from tauten.models import packing
from tauten.models.part_tensors import PartTensors
from tauten.models.records import check_range, layer_record, relative_error, zeros_of
from tauten.runtime.modules import PackedModule


class LayerPacker:
    """Packs the layers of one model, a weight that several share once.

    Args:
        recipe: What to do with each layer.
        tensors: Of the model.
        unit_of: The unit of each layer that can be packed.
    Attributes:
        shared: What each weight became and the layer that was packed first, by the weight's id. The
            weight is kept beside, so that no other tensor takes over its id.
    """

    def __init__(self, recipe: Recipe, tensors: PartTensors, unit_of: Mapping[str, str]):
        self._recipe, self._tensors, self._unit_of = recipe, tensors, unit_of
        self.shared: dict[int, tuple[PackedWeight, str, Tensor]] = {}
        self._kept: dict[int, tuple[str, Tensor]] = {}

    def pack(
        self,
        name: str,
        module: nn.Module,
        inputs: LayerInputs | None,
        fitted: nn.Module | None,
        remark: str,
    ) -> tuple[LayerRecord, PackedModule | None]:
        """Pack a layer as the recipe says.

        Args:
            name: Of the layer.
            module: The layer.
            inputs: What it sees, where that was observed.
            fitted: Its packed weight, where a technique made that together with others.
            remark: What else the report says of it once it is packed.
        Returns:
            Its record, and what takes its place; None if it was kept.
        """
        weight, found = module.weight, self._recipe.step_for(name)
        assert isinstance(weight, Tensor)
        if found is None:
            return self.kept(name, weight, "no step of the recipe is for it"), None
        if not weight.is_floating_point() or weight.dtype.itemsize == 1:
            return self.kept(name, weight, f"no technique takes {dtype_name(weight.dtype)}"), None
        technique = found[1].technique
        assert isinstance(technique, WeightTechnique), "other techniques don't reach the walk"
        try:
            step = technique.activation_step(inputs)
            if id(weight) in self.shared:
                packed, owner, _ = self.shared[id(weight)]
                record = self._record(name, weight, packed, 0, 0.0, f"tied to {owner}: stored once")
                layer = packing.packed_layer(module, packed, technique.activation_dtype, step)
                return record, layer
            matrix, stored_bytes = self._matrix(module, weight)
            packed = fitted or technique.encode(matrix, inputs)  # type: ignore[assignment]
        except NotApplicableError as error:
            return self.kept(name, weight, str(error)), None
        if packed.size_bytes >= stored_bytes:
            return self.kept(name, weight, "packing would not make it smaller"), None
        self.shared[id(weight)] = packed, name, weight
        reason = f"step {found[0]} of the recipe is for {found[1].place}{remark}"
        error_ratio = relative_error(matrix, packed)
        record = self._record(name, weight, packed, stored_bytes, error_ratio, reason)
        zeros, lost = zeros_of(matrix, packed)
        record = replace(record, zeros=zeros, zeros_lost=lost)
        layer = packing.packed_layer(module, packed, technique.activation_dtype, step)
        if not isinstance(module, nn.Embedding):  # the inputs are those of the head it is tied to
            self._correct_bias(layer, technique.bias_change(matrix, packed, inputs))
        return record, layer

    def _matrix(self, module: nn.Module, weight: Tensor) -> tuple[Tensor, int]:
        """A weight as techniques take it, (out, in, ...), and its bytes as stored.

        Raises:
            NotApplicableError: None could tell its errors.
        """
        stored = self._tensors.stored(weight).detach()
        # bfloat16 holds all that float8 does, and torch computes in it.
        values = stored.bfloat16() if stored.dtype.itemsize == 1 else stored
        check_range(values)
        return packing.matrix_of(module, values), stored.nbytes

    def kept(self, name: str, weight: Tensor, why: str) -> LayerRecord:
        """The record of a weight that stays as it is, counted once where it stands."""
        stored_bytes = self._tensors.stored(weight).nbytes
        record = self._record(name, weight, None, stored_bytes, 0.0, f"kept: {why}")
        owner, _ = self._kept.setdefault(id(weight), (name, weight))
        if owner == name:
            return record
        reason = f"tied to {owner}: stored once"
        return replace(record, original_bytes=0, size_bytes=0, reason=reason)

    def _correct_bias(self, layer: PackedModule, change: Tensor | None) -> None:
        if change is None:
            return
        if layer.bias is not None:
            change = self._tensors.stored(layer.bias).detach() + change
        layer.bias = nn.Parameter(change.to(layer.dtype_like.dtype), requires_grad=False)

    def _record(self, name: str, weight: Tensor, *rest: Any) -> LayerRecord:
        holder = name if name in self._unit_of else name.rpartition(".")[0]
        held_by = type(self._tensors.model.get_submodule(holder)).__name__
        unit = self._unit_of.get(name, name)
        return layer_record(name, unit, held_by, weight, *rest)
