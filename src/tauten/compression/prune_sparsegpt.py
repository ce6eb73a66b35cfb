"""Second-order pruning: kept weights, or their codes, make up for those that are zeroed."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tauten.core.errors import InputError
from tauten.core.inputs import LayerInputs
from tauten.core.knobs import (
    check_allocation,
    check_damping,
    check_group_size,
    check_rounds,
    check_sparsity,
)
from tauten.core.technique import CalibratedTechnique, PruningTechnique
from tauten.formats.integer import ZERO_KINDS, round_to_grid
from tauten.formats.sparse import SparseWeight
from tauten.solvers.grid import Grid, column_rounder, fit_grid
from tauten.solvers.pruning import (
    SPEED_CAUTION,
    SweepMask,
    alternate_mask,
    keep_largest,
    pack_floats,
    refit_kept,
    wanda_saliency,
)
from tauten.solvers.second_order import (
    Curvature,
    corrected_target,
    curvature,
    damped,
    descend,
    sweep,
)

MASK_BLOCK = 128  # columns whose mask is decided together, as in the paper
Pruned = tuple[Tensor, Tensor, Grid | None]  # mask, (out, in) values, their grid with `bits`


@dataclass(frozen=True)
class PruneSparseGPT(PruningTechnique, CalibratedTechnique):
    """Zero weights so that the outputs of each layer change least, measured on calibration data.

    A mask of the whole matrix is decided again and again while the kept weights adapt to it; they
    are then fitted by least squares. With `bits` a sweep turns that fit into codes, each column's
    error made up for by those that follow, and each code is decided once more, all against the
    outputs of the dense weight. With `rounds=0` it is the paper's algorithm: one sweep from the
    dense weight decides masks, block by block, and codes.

    Where inputs weren't seen (an embedding, no data), the smallest weights are zeroed and codes
    are the nearest.

    Attributes:
        sparsity: Part of the weights of a matrix that is zeroed, above 0 and below 1.
        pattern: `unstructured`, or `2:4` for 2 of each 4 neighbours in a row.
        bits: Of the codes of kept weights, 1 to 8; 0 keeps them floating.
        group_size: Columns that share a scale; 0 for one scale a row. Only with `bits`.
        zero: As for `rtn`. Only with `bits`.
        damping: Added to the diagonal of the second moment, relative to its mean.
        rounds: How often the mask is decided at each of 4 penalties; more finds slightly better
            ones, in proportion slower.
        correction: As for `gptq`: how far the layer also makes up for those pruned before it, 0 to
            1; needs many tokens.
        allocation: `uniform` zeroes the same part of each layer; `sensitivity`, which needs data,
            as many in all, but more where the model's loss grows less by it.

    Source: Frantar and Alistarh 2023, arXiv:2301.00774; the masks of `rounds` by ADMM, see
    `solvers.pruning.alternate_mask`.
    """

    name = "prune_sparsegpt"
    pillar = "compress"
    caution = SPEED_CAUTION

    sparsity: float = 0.5
    pattern: str = "unstructured"
    bits: int = 0
    group_size: int = 64
    zero: str = "integer"
    damping: float = 0.01
    rounds: int = 5
    correction: float = 0.0
    allocation: str = "uniform"

    def __post_init__(self) -> None:
        check_sparsity(self.name, self.sparsity, self.pattern)
        check_allocation(self.name, self.allocation, self.pattern)
        if not isinstance(self.bits, int) or self.bits not in range(9):
            raise InputError(f"{self.name}: bits={self.bits}: expected 1 to 8, or 0 for floats")
        check_group_size(self.name, self.group_size)
        if self.zero not in ZERO_KINDS:
            expected = f"expected one of {', '.join(ZERO_KINDS)}"
            raise InputError(f"{self.name}: zero={self.zero!r}: {expected}")
        check_damping(self.name, self.damping)
        check_rounds(self.name, self.rounds)
        if not 0 <= self.correction <= 1:
            raise InputError(f"{self.name}: correction={self.correction}: expected 0 to 1")

    @property
    def needs_shift(self) -> bool:
        return self.correction > 0

    @classmethod
    def space(cls) -> Mapping[str, Sequence[Any]]:
        return {"sparsity": (0.3, 0.4, 0.5, 0.6), "bits": (0, 8, 6, 5, 4, 3)}

    def encode(self, weight: Tensor, inputs: LayerInputs | None = None) -> SparseWeight:
        matrix = weight.flatten(1).float()
        if inputs is None:
            mask = self.mask(matrix, None)
            return self._packed((mask, matrix, self._grid(matrix, mask.float())), weight)
        curve = curvature(inputs.moment, self.damping, by_importance=False)
        moment = damped(inputs.moment, curve.damping)
        if inputs.shift is not None and self.correction:
            matrix = corrected_target(matrix, inputs.shift, curve, self.correction)
        prune = self._alternate if self.rounds else self._sweep
        return self._packed(prune(matrix, moment, curve), weight)

    def mask(self, weight: Tensor, inputs: LayerInputs | None) -> Tensor:
        """The mask that rounds start from."""
        saliency = wanda_saliency(weight, None if inputs is None else inputs.moment)
        return keep_largest(saliency, self.sparsity, self.pattern)

    def _sweep(self, matrix: Tensor, moment: Tensor, curve: Curvature) -> Pruned:
        """Masks and codes in one sweep."""
        marks = SweepMask(matrix.shape, self.sparsity, self.pattern)
        grid = self._grid(matrix, moment.diagonal())
        decide = self._decide(marks.mask, grid)
        values = sweep(matrix, curve, decide, MASK_BLOCK, marks.prepare)
        return marks.mask, values, grid

    def _alternate(self, matrix: Tensor, moment: Tensor, curve: Curvature) -> Pruned:
        """A mask of many rounds, then codes in one sweep."""
        mask, near = alternate_mask(matrix, moment, self.sparsity, self.pattern, self.rounds)
        values = refit_kept(matrix, moment, near, mask)
        grid = self._grid(values, moment.diagonal() * mask)
        if grid is not None:
            decide = self._decide(mask, grid)
            values = descend(matrix, sweep(values, curve, decide), moment, decide)
        return mask, values, grid

    def _grid(self, values: Tensor, importance: Tensor) -> Grid | None:
        if not self.bits:
            return None
        return fit_grid(values, self.bits, self.group_size, self.zero, "mse", importance)

    def _decide(self, mask: Tensor, grid: Grid | None) -> Callable[[Tensor, int], Tensor]:
        """What a column's values become; the mask may still be decided as the sweep goes on."""
        if grid is None:
            return lambda values, column: values * mask[:, column]
        size = self.group_size or mask.shape[1]
        nearest = column_rounder(*grid, self.bits, size)
        return lambda values, column: torch.where(mask[:, column], nearest(values, column), 0.0)

    def _packed(self, pruned: Pruned, weight: Tensor) -> SparseWeight:
        mask, values, grid = pruned
        if grid is None:
            return pack_floats(values, mask, weight)
        codes = round_to_grid(values, self.bits, self.group_size, *grid)
        shaped = mask.view(weight.shape)
        return SparseWeight.from_codes(shaped, self.bits, self.group_size, codes, *grid)
