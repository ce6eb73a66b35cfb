"""Binary weights: the sign of each weight and a scale, 1 bit each."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tauten.core.errors import InputError
from tauten.core.inputs import LayerInputs
from tauten.core.knobs import check_activation, check_damping, check_group_size
from tauten.core.technique import CalibratedTechnique
from tauten.formats.integer import IntegerWeight
from tauten.formats.packed import PackedWeight
from tauten.formats.sum import SumWeight
from tauten.solvers.grid import storable
from tauten.solvers.signs import Signs, fit_signs


@dataclass(frozen=True)
class Binary(CalibratedTechnique):
    """Each weight becomes -1 or 1 times the scale of its group.

    The scale is the mean magnitude of the group. With data, magnitudes are weighted by the
    strength of their input, and then the second-order sweep decides the signs and least squares
    the scales, for the least error of the layer's outputs. A model packed so needs distillation
    before it is useful.

    Attributes:
        group_size: Columns that share a scale; 0 for one scale a row.
        residual: A second binary weight holds what the first one leaves: twice the bytes.
        damping: Added to the diagonal of the second moment, relative to its mean.
        activation: As for `rtn`.

    Source: Rastegari et al. 2016, arXiv:1603.05279, section 3.1; the second pass is the residual
    approximation of Huang et al. 2024 (BiLLM), arXiv:2402.04291, here for all weights, not the
    salient ones only, and decided in the same sweep as the first.
    """

    name = "binary"
    pillar = "quantize"
    own_bits = 1
    caution = "at 1 bit a model needs distillation before its answers are useful"

    group_size: int = 64
    residual: bool = False
    damping: float = 0.01
    activation: str = "float"

    def __post_init__(self) -> None:
        check_group_size(self.name, self.group_size)
        if not isinstance(self.residual, bool):
            raise InputError(f"binary: residual={self.residual!r}: expected true or false")
        check_damping(self.name, self.damping)
        check_activation(self.name, self.activation)

    @classmethod
    def space(cls) -> Mapping[str, Sequence[Any]]:
        return {"group_size": (32, 64, 128), "residual": (False, True)}

    def encode(self, weight: Tensor, inputs: LayerInputs | None = None) -> PackedWeight:
        passes = 2 if self.residual else 1
        knobs = (False, self.group_size, passes, inputs, self.damping)
        parts = [
            self._packed(tuple(weight.shape), part) for part in fit_signs(weight.flatten(1), *knobs)
        ]
        return SumWeight(*parts) if self.residual else parts[0]

    def _packed(self, shape: tuple[int, ...], part: Signs) -> IntegerWeight:
        # The two levels of an integer weight of 1 bit are half a scale from zero.
        codes, scale = (part.signs > 0).to(torch.uint8), storable(2 * part.scale.float())
        return IntegerWeight.from_codes(shape, 1, self.group_size, codes, scale, None)
