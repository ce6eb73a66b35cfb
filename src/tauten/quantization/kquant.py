"""K-quants: groups of few columns, whose scales cost few bits because they are integers too."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from tauten.core.errors import InputError
from tauten.core.inputs import LayerInputs
from tauten.core.knobs import check_activation, check_damping, check_rounds
from tauten.core.technique import CalibratedTechnique
from tauten.formats.gguf_blocks import BLOCK_TYPES
from tauten.formats.superblock import (
    SuperblockWeight,
    TwoLevelGrid,
    TwoLevelScales,
    two_level_values,
)
from tauten.solvers.refit import refit_two_level
from tauten.solvers.second_order import curvature, damped, descend, sweep
from tauten.solvers.two_level import column_rounder, fit_two_level, round_to_two_level


@dataclass(frozen=True)
class KQuant(CalibratedTechnique):
    """Rounding to a grid with scales of two levels, by GPTQ's sweep where inputs were seen.

    The scales, already rounded to what is stored, are fitted to the weights, each column's error
    weighted by the strength of its input; then the columns are swept on that grid, and super-scales
    and codes decided once more, by turns. Without inputs, weights are rounded to nearest. The
    defaults take the bytes of `gptq` in groups of 64; `KQuant.gguf` gives GGUF's own grids.

    Attributes:
        bits: 1 to 8.
        group_size: Columns that share a scale; multiples of 32 run on native kernels.
        superblock: Columns that share a super-scale, a multiple of `group_size`; 0 for the row.
        scale_bits: Of a group's scale, and of its offset, 2 to 8.
        zero: `float` (each group has an offset, rounded like its scale) or `none` (symmetric).
        damping: Added to the diagonal of the second moment, relative to its mean.
        by_importance: Round the columns with the strongest inputs first.
        rounds: As for `gptq`.
        activation: As for `rtn`.

    Source: the grids of llama.cpp's K-quants (ggml-quants.c, which fits them by its own search,
    one group after the other); the sweep is Frantar et al. 2022, arXiv:2210.17323. The fit of
    scales as they are stored, and any sizes, are ours.
    """

    name = "kquant"
    pillar = "quantize"

    bits: int = 4
    group_size: int = 32
    superblock: int = 1024
    scale_bits: int = 4
    zero: str = "float"
    damping: float = 0.01
    by_importance: bool = True
    rounds: int = 1
    activation: str = "float"

    def __post_init__(self) -> None:
        try:
            self._grid()
        except InputError as error:
            raise InputError(f"kquant: {error}".replace("zero_kind", "zero")) from None
        check_damping(self.name, self.damping)
        check_rounds(self.name, self.rounds)
        check_activation(self.name, self.activation)

    @classmethod
    def gguf(cls, name: str) -> "KQuant":
        """The K-quant of a GGUF type, Q2_K to Q6_K; its rows must be multiples of 256 columns."""
        block = BLOCK_TYPES.get(name)
        if block is None or not block.scale_bits:
            known = ", ".join(name for name, block in BLOCK_TYPES.items() if block.scale_bits)
            raise InputError(
                f"kquant: GGUF type {name!r}: expected one of {known}; the grid of Q4_0 is "
                "GPTQ(4, 32, 'none'), that of Q8_0 GPTQ(8, 32, 'none'), that of Q4_1 "
                "GPTQ(4, 32, 'float')"
            )
        size = (block.group_size, block.columns, block.scale_bits)
        return cls(block.bits, *size, block.zero_kind)

    @classmethod
    def space(cls) -> Mapping[str, Sequence[Any]]:
        return {
            "bits": (6, 5, 4, 3, 2),
            "group_size": (32, 64),
            "scale_bits": (4, 6),
            "zero": ("float", "none"),
        }

    def encode(self, weight: Tensor, inputs: LayerInputs | None = None) -> SuperblockWeight:
        matrix, grid = weight.flatten(1).float(), self._grid()
        if inputs is None:
            scales = fit_two_level(matrix, grid)
            codes = round_to_two_level(matrix, grid, scales)
        else:
            codes, scales = self._sweep(matrix, inputs.moment)
        return SuperblockWeight.from_scales(tuple(weight.shape), grid, codes, scales)

    def _sweep(self, matrix: Tensor, moment: Tensor) -> tuple[Tensor, TwoLevelScales]:
        """Codes and scales of least output error, as `gptq` finds them."""
        grid, curve = self._grid(), curvature(moment, self.damping, self.by_importance)
        scales = fit_two_level(matrix, grid, moment.diagonal())
        rounded = sweep(matrix, curve, column_rounder(grid, scales))
        codes, moment = round_to_two_level(rounded, grid, scales), damped(moment, curve.damping)
        for _ in range(self.rounds):
            scales = refit_two_level(matrix, moment, codes, grid, scales)
            levels = two_level_values(codes, grid, scales)
            rounded = descend(matrix, levels, moment, column_rounder(grid, scales))
            codes = round_to_two_level(rounded, grid, scales)
        return codes, scales

    def _grid(self) -> TwoLevelGrid:
        size = (self.group_size, self.superblock, self.scale_bits)
        return TwoLevelGrid(self.bits, *size, self.zero)
