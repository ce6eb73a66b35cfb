"""Round to nearest: the fastest way to fewer bits, and the baseline of all others."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from tauten.core.errors import InputError
from tauten.core.inputs import LayerInputs
from tauten.core.knobs import check_activation, check_bits, check_group_size
from tauten.core.technique import CalibratedTechnique
from tauten.formats.integer import ZERO_KINDS, IntegerWeight
from tauten.solvers.nearest import round_to_nearest


@dataclass(frozen=True)
class RTN(CalibratedTechnique):
    """Round each weight to the nearest level of its group's grid. Needs no data, and looks at none
    but for `clip="importance"`.

    Attributes:
        bits: 1 to 8.
        group_size: Columns that share a scale; 0 for one scale a row.
        zero: `float` (any offset, as GGUF Q4_1), `integer` (an integer zero point) or `none`.
        clip: `mse` narrows each group's span where that lowers the squared error; `minmax` not;
            `importance` does it with each column's errors weighted by the mean square of its
            inputs, or without data each weight's by its own square beside the row's mean one.
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

    @property
    def looks_at_inputs(self) -> bool:
        return self.clip == "importance"

    def __post_init__(self) -> None:
        check_bits(self.name, self.bits)
        check_group_size(self.name, self.group_size)
        if self.zero not in ZERO_KINDS:
            raise InputError(f"rtn: zero={self.zero!r}: expected one of {', '.join(ZERO_KINDS)}")
        if self.clip not in ("mse", "minmax", "importance"):
            raise InputError(f"rtn: clip={self.clip!r}: expected mse, minmax or importance")
        check_activation(self.name, self.activation)

    @classmethod
    def space(cls) -> Mapping[str, Sequence[Any]]:
        return {"bits": (8, 6, 5, 4, 3, 2), "group_size": (32, 64, 128), "zero": ("float", "none")}

    def encode(self, weight: Tensor, inputs: LayerInputs | None = None) -> IntegerWeight:
        grid = self.bits, self.group_size, self.zero
        if self.clip != "importance":
            return round_to_nearest(weight, *grid, self.clip)
        importance = own_importance if inputs is None else inputs.moment.diagonal()
        return round_to_nearest(weight, *grid, "mse", importance)


def own_importance(matrix: Tensor) -> Tensor:
    """(rows, in) floating -> the same: what llama.cpp weighs errors by where it has no data."""
    squares = matrix.float().square()
    return squares + squares.mean(1, keepdim=True)
