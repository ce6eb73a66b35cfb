"""Wanda: zero the weights that are small, or whose inputs are."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from tauten.core.inputs import LayerInputs
from tauten.core.knobs import check_sparsity
from tauten.core.technique import CalibratedTechnique
from tauten.formats.sparse import SparseWeight
from tauten.solvers.pruning import SPEED_CAUTION, keep_largest, pack_floats


@dataclass(frozen=True)
class PruneWanda(CalibratedTechnique):
    """Zero the weights of each row with the least |w| ||x||; the others stay as they are.

    A second or so for a small language model besides its calibration. Without data, and where
    inputs weren't seen (an embedding), all inputs count as equally strong.

    Attributes:
        sparsity: Part of each row that is zeroed, above 0 and below 1.
        pattern: `unstructured`, or `2:4` for 2 of each 4 neighbours in a row.

    Source: Sun et al. 2023, arXiv:2306.11695, eq. 1.
    """

    name = "prune_wanda"
    pillar = "compress"
    caution = SPEED_CAUTION

    sparsity: float = 0.5
    pattern: str = "unstructured"

    def __post_init__(self) -> None:
        check_sparsity(self.name, self.sparsity, self.pattern)

    @classmethod
    def space(cls) -> Mapping[str, Sequence[Any]]:
        return {"sparsity": (0.3, 0.4, 0.5, 0.6)}

    def encode(self, weight: Tensor, inputs: LayerInputs | None = None) -> SparseWeight:
        matrix = weight.flatten(1)
        saliency = matrix.abs().float()
        if inputs is not None:
            saliency = saliency * inputs.moment.diagonal().sqrt()
        mask = keep_largest(saliency, self.sparsity, self.pattern, by_row=True)
        return pack_floats(matrix, mask, weight)
