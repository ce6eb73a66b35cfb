"""AWQ: scale up the columns that see strong inputs, so that rounding costs them less."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tauten.core.errors import InputError
from tauten.core.inputs import LayerInputs
from tauten.core.knobs import check_activation, check_bits, check_group_size
from tauten.core.technique import ScalingTechnique
from tauten.formats.integer import ZERO_KINDS, IntegerWeight
from tauten.solvers.grid import column_rounder, fit_grid, nearest_values
from tauten.solvers.nearest import round_to_nearest
from tauten.solvers.scaling import centred, least_lossy, spread_rows, tied
from tauten.solvers.second_order import curvature, output_error, sweep

EXPONENTS = tuple(step / 10 for step in range(1, 11))
TRIED_ROWS = 256  # of each weight, while scales are compared
DAMPING = 0.01


@dataclass(frozen=True)
class AWQ(ScalingTechnique):
    """Rounding of weights whose columns are scaled by the strength of their inputs.

    The norm or layer before divides its channels by the scale, so that inference costs nothing.
    Where no layer before can, the scale is 1; without data it is rounding to nearest.

    Attributes:
        bits: 1 to 8.
        group_size: Columns that share a scale of the grid; 0 for one a row.
        zero: As for `rtn`.
        rounding: `nearest`, or `second_order`: each column's error is made up for by those that
            follow, as in `gptq`.
        activation: As for `rtn`.

    Source: Lin et al. 2023, arXiv:2306.00978, section 3.2, with exponents up to 1 and optionally
    the weight's magnitude in the scale as in its reference code. Different here: strength is the
    root mean square of inputs instead of their mean magnitude; the loss is that of all outputs
    together, exact from the second moment of the inputs and not from a sample of them; spans are
    narrowed by the error that the inputs' strength gives.
    """

    name = "awq"
    pillar = "quantize"

    bits: int = 4
    group_size: int = 64
    zero: str = "integer"
    rounding: str = "nearest"
    activation: str = "float"

    def __post_init__(self) -> None:
        check_bits(self.name, self.bits)
        check_group_size(self.name, self.group_size)
        if self.zero not in ZERO_KINDS:
            raise InputError(f"awq: zero={self.zero!r}: expected one of {', '.join(ZERO_KINDS)}")
        if self.rounding not in ("nearest", "second_order"):
            raise InputError(f"awq: rounding={self.rounding!r}: expected nearest or second_order")
        check_activation(self.name, self.activation)

    @classmethod
    def space(cls) -> Mapping[str, Sequence[Any]]:
        return {
            "bits": (8, 6, 5, 4, 3, 2),
            "group_size": (32, 64, 128),
            "rounding": ("nearest", "second_order"),
        }

    def scale(self, weights: Sequence[Tensor], inputs: LayerInputs, channels: Tensor) -> Tensor:
        """The scale with the least error of outputs: tr(D H D^T) with D the change of a weight."""
        rows = torch.cat([spread_rows(weight, TRIED_ROWS) for weight in weights])

        def loss(scale: Tensor) -> float:
            rounded = self._nearest(rows * scale, energy / scale.square())
            return float(output_error(rounded / scale - rows, inputs.moment).sum())

        energy = inputs.moment.diagonal()
        strength = tied(energy.sqrt(), channels)
        magnitude = tied(torch.cat(list(weights)).abs().mean(0), channels)
        return least_lossy(_scales(strength, magnitude), loss)

    def encode(self, weight: Tensor, inputs: LayerInputs | None = None) -> IntegerWeight:
        if inputs is None:
            return round_to_nearest(weight, self.bits, self.group_size, self.zero, "mse")
        matrix, moment = weight.flatten(1).float(), inputs.moment
        grid = fit_grid(matrix, self.bits, self.group_size, self.zero, "mse", moment.diagonal())
        if self.rounding == "second_order":
            size = self.group_size or matrix.shape[1]
            rounder = column_rounder(*grid, self.bits, size)
            matrix = sweep(matrix, curvature(moment, DAMPING, by_importance=True), rounder)
        return IntegerWeight.encode(matrix.view(weight.shape), self.bits, self.group_size, *grid)

    def _nearest(self, matrix: Tensor, importance: Tensor) -> Tensor:
        grid = fit_grid(matrix, self.bits, self.group_size, self.zero, "mse", importance)
        return nearest_values(matrix, self.bits, self.group_size, *grid)


def _scales(strength: Tensor, magnitude: Tensor) -> Iterator[Tensor]:
    """Scales to compare: 1, and powers of the inputs' strength without and with the weight's."""
    yield torch.ones_like(strength)
    for exponent in EXPONENTS:
        yield centred(strength**exponent)
        yield centred(strength**exponent / magnitude ** (1 - exponent))
