"""Ternary weights: -1, 0 or 1 times a scale, 1.6 bits each on disk."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from tauten.core.errors import InputError
from tauten.core.inputs import LayerInputs
from tauten.core.knobs import check_activation, check_damping, check_group_size
from tauten.core.technique import CalibratedTechnique
from tauten.formats.packed import PackedWeight
from tauten.formats.sum import SumWeight
from tauten.formats.ternary import TernaryWeight
from tauten.solvers.signs import fit_signs


@dataclass(frozen=True)
class Ternary(CalibratedTechnique):
    """Each weight becomes -1, 0 or 1 times the scale of its group.

    The scale is the best there is for the group, found exactly. With data, the second-order sweep
    then decides the signs and least squares the scales, for the least error of the layer's
    outputs. A model packed so needs distillation before it is useful.

    Attributes:
        group_size: Columns that share a scale; 0 for one scale a row.
        residual: A second ternary weight holds what the first one leaves: twice the bytes.
        damping: Added to the diagonal of the second moment, relative to its mean.
        activation: As for `rtn`.

    Source: Li et al. 2016, arXiv:1605.04711, with their approximate threshold replaced by the
    optimum; the sweep is that of Frantar et al. 2022, arXiv:2210.17323.
    """

    name = "ternary"
    pillar = "quantize"
    own_bits = 1.6
    caution = "at 1.6 bits a model needs distillation before its answers are useful"

    group_size: int = 64
    residual: bool = False
    damping: float = 0.01
    activation: str = "float"

    def __post_init__(self) -> None:
        check_group_size(self.name, self.group_size)
        if not isinstance(self.residual, bool):
            raise InputError(f"ternary: residual={self.residual!r}: expected true or false")
        check_damping(self.name, self.damping)
        check_activation(self.name, self.activation)

    @classmethod
    def space(cls) -> Mapping[str, Sequence[Any]]:
        return {"group_size": (32, 64, 128), "residual": (False, True)}

    def encode(self, weight: Tensor, inputs: LayerInputs | None = None) -> PackedWeight:
        shape, passes = tuple(weight.shape), 2 if self.residual else 1
        knobs = (True, self.group_size, passes, inputs, self.damping)
        parts = [
            TernaryWeight.from_signs(shape, self.group_size, part.signs, part.scale)
            for part in fit_signs(weight.flatten(1), *knobs)
        ]
        return SumWeight(*parts) if self.residual else parts[0]
