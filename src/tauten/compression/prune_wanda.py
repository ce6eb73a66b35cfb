"""Wanda: zero the weights that are small, or whose inputs are."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from tauten.core.inputs import LayerInputs
from tauten.core.knobs import check_allocation, check_sparsity
from tauten.core.technique import CalibratedTechnique, PruningTechnique
from tauten.formats.sparse import SparseWeight
from tauten.solvers.pruning import SPEED_CAUTION, keep_largest, pack_floats, wanda_saliency


@dataclass(frozen=True)
class PruneWanda(PruningTechnique, CalibratedTechnique):
    """Zero the weights of each row with the least |w| ||x||; the others stay as they are.

    A second or so for a small language model besides its calibration. Without data, and where
    inputs weren't seen (an embedding), all inputs count as equally strong.

    Attributes:
        sparsity: Part of each row that is zeroed, above 0 and below 1.
        pattern: `unstructured`, or `2:4` for 2 of each 4 neighbours in a row.
        allocation: `uniform` zeroes the same part of each layer; `sensitivity`, which needs data,
            as many in all, but more where the model's loss grows less by it.

    Source: Sun et al. 2023, arXiv:2306.11695, eq. 1.
    """

    name = "prune_wanda"
    pillar = "compress"
    caution = SPEED_CAUTION

    sparsity: float = 0.5
    pattern: str = "unstructured"
    allocation: str = "uniform"

    def __post_init__(self) -> None:
        check_sparsity(self.name, self.sparsity, self.pattern)
        check_allocation(self.name, self.allocation, self.pattern)

    @classmethod
    def space(cls) -> Mapping[str, Sequence[Any]]:
        return {"sparsity": (0.3, 0.4, 0.5, 0.6)}

    def encode(self, weight: Tensor, inputs: LayerInputs | None = None) -> SparseWeight:
        matrix = weight.flatten(1)
        return pack_floats(matrix, self.mask(matrix, inputs), weight)

    def mask(self, weight: Tensor, inputs: LayerInputs | None) -> Tensor:
        saliency = wanda_saliency(weight, None if inputs is None else inputs.moment)
        return keep_largest(saliency, self.sparsity, self.pattern, by_row=True)
