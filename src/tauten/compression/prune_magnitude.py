"""Magnitude pruning: zero the smallest weights. Needs no data, and loses most."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from tauten.core.inputs import LayerInputs
from tauten.core.knobs import check_allocation, check_sparsity
from tauten.core.technique import PruningTechnique
from tauten.formats.sparse import SparseWeight
from tauten.solvers.pruning import SPEED_CAUTION, keep_largest, pack_floats


@dataclass(frozen=True)
class PruneMagnitude(PruningTechnique):
    """Zero the smallest weights of each tensor; the others stay as they are.

    Attributes:
        sparsity: Part of the weights that is zeroed, above 0 and below 1.
        pattern: `unstructured`, or `2:4` for 2 of each 4 neighbours in a row.
        allocation: `uniform` zeroes the same part of each layer; `sensitivity`, which needs data,
            as many in all, but more where the model's loss grows less by it.

    Source: Han et al. 2015, arXiv:1506.02626, section 3.2, without retraining.
    """

    name = "prune_magnitude"
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
        return keep_largest(weight.abs(), self.sparsity, self.pattern)
