"""GPTQ: round column by column, each column's error made up for by those that follow."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from tauten.core.errors import InputError, NotApplicableError
from tauten.core.inputs import BlockExamples, LayerInputs
from tauten.core.knobs import (
    check_activation,
    check_bits,
    check_damping,
    check_group_size,
    check_rounds,
)
from tauten.core.printing import logger
from tauten.core.technique import BlockTechnique
from tauten.formats.integer import ZERO_KINDS, IntegerWeight, grid_values, round_to_grid
from tauten.models.packing import matrix_of
from tauten.solvers.block_fit import held_out_distance
from tauten.solvers.grid import column_rounder, fit_grid
from tauten.solvers.nearest import round_to_nearest
from tauten.solvers.refit import refit_grid
from tauten.solvers.second_order import corrected_target, curvature, damped, descend, sweep

_log = logger(__name__)
AUTO = "auto"
STRENGTHS = (0.0, 0.25, 0.5)  # more has only done harm where it was tried


@dataclass(frozen=True)
class GPTQ(BlockTechnique):
    """Rounding that keeps the outputs of each layer, measured on calibration data.

    Scales and zeros are found first, each column's error weighted by the strength of its input.
    A weight whose inputs weren't seen (an embedding) is rounded to nearest.

    Attributes:
        bits: 1 to 8.
        group_size: Columns that share a scale; 0 for one scale a row.
        zero: As for `rtn`.
        damping: Added to the diagonal of the second moment, relative to its mean.
        by_importance: Round the columns with the strongest inputs first.
        correction: How far the layer also makes up for the errors of those before it, 0 to 1;
            layers that saw too few tokens for it are left alone. `auto` tries 0, 0.25 and 0.5 on
            each block and keeps what serves the outputs of the block best on batches held out,
            which the log says; that takes three times as long.
        rounds: How often scales (and floating zeros) are then fitted to the codes, and codes
            decided once more on them; each costs about as much as the first decision.
        activation: As for `rtn`.

    Source: Frantar et al. 2022, arXiv:2210.17323. Grids here are fitted to the importance of
    columns and stay as they are during the sweep, in whatever order it goes; the rounds after it
    are coordinate descent.
    """

    name = "gptq"
    pillar = "quantize"

    bits: int = 4
    group_size: int = 64
    zero: str = "integer"
    damping: float = 0.01
    by_importance: bool = True
    correction: float | str = 0.0
    rounds: int = 1
    activation: str = "float"

    def __post_init__(self) -> None:
        check_bits(self.name, self.bits)
        check_group_size(self.name, self.group_size)
        if self.zero not in ZERO_KINDS:
            raise InputError(f"gptq: zero={self.zero!r}: expected one of {', '.join(ZERO_KINDS)}")
        check_damping(self.name, self.damping)
        strength = self.correction
        if strength != AUTO and (isinstance(strength, str) or not 0 <= strength <= 1):
            raise InputError(f"gptq: correction={strength!r}: expected 0 to 1, or {AUTO!r}")
        check_rounds(self.name, self.rounds)
        check_activation(self.name, self.activation)

    @property
    def needs_shift(self) -> bool:
        return self.correction != 0

    @property
    def fits_blocks(self) -> bool:
        return self.correction == AUTO

    @classmethod
    def space(cls) -> Mapping[str, Sequence[Any]]:
        return {
            "bits": (8, 6, 5, 4, 3, 2),
            "group_size": (32, 64, 128),
            "correction": (0.0, 0.25, 0.5),
        }

    def encode_block(
        self, block: nn.Module, inputs: Mapping[str, LayerInputs], examples: BlockExamples
    ) -> dict[str, IntegerWeight]:
        if not examples.held_out or not any(seen.suffices for seen in inputs.values()):
            return {}
        weights = {name: _weight(block, name).clone() for name in inputs}
        least, best, kept = float("inf"), dict[str, IntegerWeight](), 0.0
        for strength in STRENGTHS:
            packed: dict[str, IntegerWeight] = {}
            for name, seen in inputs.items():
                technique = replace(self, correction=strength if seen.suffices else 0.0)
                try:
                    packed[name] = technique.encode(weights[name], seen)
                except NotApplicableError:
                    continue  # `encode` of this layer by itself says why
                _weight(block, name).copy_(packed[name].dequantize())
            distance = held_out_distance(block, examples)
            if distance < least:
                least, best, kept = distance, packed, strength
        _log.info("gptq: correction=%g serves this block best", kept)
        return best

    def encode(self, weight: Tensor, inputs: LayerInputs | None = None) -> IntegerWeight:
        if inputs is None:
            return round_to_nearest(weight, self.bits, self.group_size, self.zero, "mse")
        matrix, moment = weight.flatten(1).float(), inputs.moment
        curve = curvature(moment, self.damping, self.by_importance)
        strength = 0.0 if isinstance(self.correction, str) else self.correction
        if inputs.shift is not None and inputs.suffices and strength:
            matrix = corrected_target(matrix, inputs.shift, curve, strength)
        grid = fit_grid(matrix, self.bits, self.group_size, self.zero, "mse", moment.diagonal())
        size, moment = self.group_size or matrix.shape[1], damped(moment, curve.damping)
        rounded = sweep(matrix, curve, column_rounder(*grid, self.bits, size))
        for _ in range(self.rounds):
            codes = round_to_grid(rounded, self.bits, self.group_size, *grid)
            grid = refit_grid(matrix, moment, codes, self.bits, size, *grid)
            rounded = grid_values(codes.float(), self.bits, size, *grid)
            rounded = descend(matrix, rounded, moment, column_rounder(*grid, self.bits, size))
        return IntegerWeight.encode(rounded.view(weight.shape), self.bits, self.group_size, *grid)


def _weight(block: nn.Module, name: str) -> Tensor:
    """(out, in, ...) of a layer of a block, a view."""
    layer = block.get_submodule(name)
    return matrix_of(layer, block.get_parameter(f"{name}.weight"))
