"""AdaRound: learn for each weight whether it is rounded up or down."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from tauten.core.errors import InputError
from tauten.core.inputs import LayerInputs
from tauten.core.knobs import check_activation, check_bits, check_group_size
from tauten.core.technique import CalibratedTechnique
from tauten.formats.integer import ZERO_KINDS, IntegerWeight
from tauten.solvers.grid import fit_grid
from tauten.solvers.learned_rounding import learned_codes
from tauten.solvers.nearest import round_to_nearest


@dataclass(frozen=True)
class AdaRound(CalibratedTechnique):
    """Rounding up or down as gradient descent finds it best for the outputs of each layer.

    A weight whose inputs weren't seen is rounded to nearest.

    Source: Nagel et al. 2020, arXiv:2004.10568; the loss of a layer is exact over all calibration
    tokens instead of sampled, grids are fitted to the importance of columns, and single weights
    change sides at the end. Where inputs are much correlated `gptq` does better: it may go beyond
    the two levels around a weight.

    Attributes:
        bits: 1 to 8.
        group_size: Columns that share a scale; 0 for one scale a row.
        zero: As for `rtn`.
        iterations: Steps of gradient descent a layer; each costs a product of the weight with the
            second moment of its inputs.
        activation: As for `rtn`.
    """

    name = "adaround"
    pillar = "quantize"

    bits: int = 4
    group_size: int = 64
    zero: str = "integer"
    iterations: int = 300
    activation: str = "float"

    def __post_init__(self) -> None:
        check_bits(self.name, self.bits)
        check_group_size(self.name, self.group_size)
        if self.zero not in ZERO_KINDS:
            known = ", ".join(ZERO_KINDS)
            raise InputError(f"adaround: zero={self.zero!r}: expected one of {known}")
        if not isinstance(self.iterations, int) or self.iterations < 1:
            raise InputError(f"adaround: iterations={self.iterations}: expected a positive integer")
        check_activation(self.name, self.activation)

    @classmethod
    def space(cls) -> Mapping[str, Sequence[Any]]:
        return {"bits": (8, 6, 5, 4, 3, 2), "group_size": (32, 64, 128)}

    def encode(self, weight: Tensor, inputs: LayerInputs | None = None) -> IntegerWeight:
        if inputs is None:
            return round_to_nearest(weight, self.bits, self.group_size, self.zero, "mse")
        matrix, moment = weight.flatten(1), inputs.moment
        grid = fit_grid(matrix, self.bits, self.group_size, self.zero, "mse", moment.diagonal())
        codes = learned_codes(matrix, moment, (self.bits, self.group_size, *grid), self.iterations)
        shape = tuple(weight.shape)
        return IntegerWeight.from_codes(shape, self.bits, self.group_size, codes, *grid)
