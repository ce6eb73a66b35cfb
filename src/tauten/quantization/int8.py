"""8-bit weights and activations: the integer product that CPUs of the last years are fast at."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from tauten.core.errors import InputError
from tauten.core.inputs import LayerInputs
from tauten.core.knobs import check_group_size
from tauten.core.technique import WeightTechnique
from tauten.formats.integer import IntegerWeight
from tauten.solvers.nearest import round_to_nearest


@dataclass(frozen=True)
class Int8(WeightTechnique):
    """8-bit weights with symmetric scales; each token's activations are rounded to 8 bits (W8A8).

    An outlier among a token's activations makes the others that share its step inexact: in
    transformers most of what 8 bits lose is lost so. Small groups keep that loss among their own
    columns, and need no data.

    Source: vector-wise quantization of Dettmers et al. 2022, arXiv:2208.07339, section 2.1, with
    groups in place of its outlier columns.

    Attributes:
        group_size: Columns that share a scale, of weights and of each token's activations; 0 for
            one scale a row and one a token, which is the fastest for many tokens at once.
            Convolutions always have one scale a row: what they see rarely has outliers.
        clip: `mse` clips the largest weights where that lowers the squared error; `minmax` keeps
            them exact, and takes less time.
    """

    name = "int8"
    pillar = "quantize"
    own_bits = 8

    group_size: int = 32
    clip: str = "mse"

    def __post_init__(self) -> None:
        check_group_size(self.name, self.group_size)
        if self.clip not in ("mse", "minmax"):
            raise InputError(f"int8: clip={self.clip!r}: expected mse or minmax")

    @property
    def activation_dtype(self) -> str:
        return "int8"

    @classmethod
    def space(cls) -> Mapping[str, Sequence[Any]]:
        return {"group_size": (0, 32, 64)}

    def encode(self, weight: Tensor, inputs: LayerInputs | None = None) -> IntegerWeight:
        group_size = self.group_size if weight.dim() == 2 else 0
        return round_to_nearest(weight, 8, group_size, zero="none", clip=self.clip)
