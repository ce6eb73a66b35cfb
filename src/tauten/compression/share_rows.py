"""Row sharing: rows of a matrix that are nearly multiples of each other are stored once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tauten.core.errors import InputError, NotApplicableError
from tauten.core.inputs import LayerInputs
from tauten.core.technique import WeightTechnique
from tauten.formats.shared_rows import SharedRowsWeight
from tauten.solvers.row_sharing import share_rows, spread_rows

MOST_ROWS = 4096  # shared ones that are looked for; matrices with more rows are embeddings


@dataclass(frozen=True)
class ShareRows(WeightTechnique):
    """Find the fewest rows that all rows of a tensor are multiples of, within an error bound.

    Products shrink with the rows: those with the shared rows are computed, then gathered and
    scaled. It serves redundant layers, such as those that were widened by copies; rows of most
    trained layers don't resemble each other, and the bound then refuses.

    Attributes:
        max_error: Largest acceptable |W - W'| / |W| (Frobenius) of one tensor, between 0 and 1.
        share: Part of the rows that is kept as shared ones, whatever the error, between 0 and 1;
            0 lets `max_error` choose, at most a half.

    Source: k-means of filters with a gain for each, as Son et al. 2018, "Clustering convolutional
    kernels to compress deep neural networks", do for 2-D kernels.
    """

    name = "share_rows"
    pillar = "compress"

    max_error: float = 0.01
    share: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.max_error < 1:
            raise InputError(f"share_rows: max_error={self.max_error}: expected between 0 and 1")
        if not 0 <= self.share < 1:
            raise InputError(f"share_rows: share={self.share}: expected 0 to choose, or below 1")

    @classmethod
    def space(cls) -> Mapping[str, Sequence[Any]]:
        return {"share": (0.5, 0.25)}

    def encode(self, weight: Tensor, inputs: LayerInputs | None = None) -> SharedRowsWeight:
        matrix = weight.flatten(1).float()
        most = round(self.share * len(matrix)) if self.share else len(matrix) // 2
        starts = matrix[spread_rows(matrix, min(max(1, most), MOST_ROWS))]
        if not len(starts):
            raise NotApplicableError("all weights are zero")
        if self.share:
            return _packed(weight, matrix, starts)
        packed = self._fewest(weight, matrix, starts)
        if packed is None:
            raise NotApplicableError(
                f"{len(starts)} shared rows for {len(matrix)} leave an error above "
                f"max_error={self.max_error}"
            )
        return packed

    def _fewest(self, weight: Tensor, matrix: Tensor, starts: Tensor) -> SharedRowsWeight | None:
        """By bisection over how many of the starts are taken; None if all aren't enough."""
        best, low, high = None, 1, len(starts)
        count = high
        while low <= high:
            packed = _packed(weight, matrix, starts[:count])
            lost = (packed.dequantize_rows(slice(None)) - matrix).norm()
            if lost <= self.max_error * matrix.norm():
                best, high = packed, count - 1
            elif best is None:
                return None
            else:
                low = count + 1
            count = (low + high) // 2
        return best


def _packed(weight: Tensor, matrix: Tensor, starts: Tensor) -> SharedRowsWeight:
    shared, index, factor = share_rows(matrix, starts)
    dtype = weight.dtype if weight.dtype.itemsize <= 4 else torch.float32
    return SharedRowsWeight.from_rows(tuple(weight.shape), shared.to(dtype), index, factor)
