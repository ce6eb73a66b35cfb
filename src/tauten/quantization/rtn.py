"""Round to nearest: the fastest way to fewer bits, and the baseline of all others."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from tauten.core.errors import InputError
from tauten.core.inputs import LayerInputs
from tauten.core.knobs import check_activation, check_bits, check_group_size
from tauten.core.technique import WeightTechnique
from tauten.formats.integer import ZERO_KINDS, IntegerWeight
from tauten.solvers.nearest import round_to_nearest


@dataclass(frozen=True)
class RTN(WeightTechnique):
    """Round each weight to the nearest level of its group's grid. Needs no data.

    Attributes:
        bits: 1 to 8.
        group_size: Columns that share a scale; 0 for one scale a row.
        zero: `float` (any offset, as GGUF Q4_1), `integer` (an integer zero point) or `none`.
        clip: `mse` narrows each group's span where that lowers the squared error; `minmax` not.
        activation: `float` multiplies by activations as they are; `int8` rounds them to 8 bits a
            token and group as they come: faster, and a little less exact.
    """

    name = "rtn"
    pillar = "quantize"

    bits: int = 4
    group_size: int = 64
    zero: str = "float"
    clip: str = "mse"
    activation: str = "float"

    def __post_init__(self) -> None:
        check_bits(self.name, self.bits)
        check_group_size(self.name, self.group_size)
        if self.zero not in ZERO_KINDS:
            raise InputError(f"rtn: zero={self.zero!r}: expected one of {', '.join(ZERO_KINDS)}")
        if self.clip not in ("mse", "minmax"):
            raise InputError(f"rtn: clip={self.clip!r}: expected mse or minmax")

        check_activation(self.name, self.activation)

    @classmethod
    def space(cls) -> Mapping[str, Sequence[Any]]:
        return {"bits": (8, 6, 5, 4, 3, 2), "group_size": (32, 64, 128), "zero": ("float", "none")}

    def encode(self, weight: Tensor, inputs: LayerInputs | None = None) -> IntegerWeight:
        return round_to_nearest(weight, self.bits, self.group_size, self.zero, self.clip)
