"""8-bit weights and activations: the integer product that CPUs of the last years are fast at."""

from dataclasses import dataclass

from torch import Tensor

from tauten.core.errors import InputError
from tauten.core.inputs import LayerInputs
from tauten.core.technique import WeightTechnique
from tauten.formats.integer import IntegerWeight
from tauten.solvers.nearest import round_to_nearest


@dataclass(frozen=True)
class Int8(WeightTechnique):
    """One symmetric scale a row of weights; each token's activations are rounded to 8 bits (W8A8).

    Source: vector-wise quantization of Dettmers et al. 2022, arXiv:2208.07339, section 2.1,
    without its outlier columns.

    Attributes:
        clip: `minmax` keeps the largest weights exact; `mse` clips them where that lowers the
            squared error.
    """

    name = "int8"
    pillar = "quantize"

    clip: str = "minmax"

    def __post_init__(self) -> None:
        if self.clip not in ("mse", "minmax"):
            raise InputError(f"int8: clip={self.clip!r}: expected mse or minmax")

    @property
    def activation_dtype(self) -> str:
        return "int8"

    def encode(self, weight: Tensor, inputs: LayerInputs | None = None) -> IntegerWeight:
        return round_to_nearest(weight, bits=8, group_size=0, zero="none", clip=self.clip)
