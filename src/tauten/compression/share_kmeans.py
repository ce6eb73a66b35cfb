"""Weight sharing: all weights of a tensor take one of a few shared values."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tauten.core.errors import InputError, NotApplicableError
from tauten.core.inputs import LayerInputs
from tauten.core.technique import WeightTechnique
from tauten.formats.codebook import CodebookWeight
from tauten.solvers.kmeans import kmeans_1d, nearest_code, storable_book

SAMPLE = 2**20  # values that k-means looks at; more changes the centres by less than rounding
SMALL_SAMPLE = 2**14


@dataclass(frozen=True)
class ShareKMeans(WeightTechnique):
    """Find the fewest shared values that keep each tensor within an error bound. Needs no data.

    Source: trained quantization and weight sharing of Han et al. 2016, arXiv:1510.00149,
    section 3, without retraining; the number of values is chosen by the error, not given.

    Attributes:
        max_error: Largest acceptable |W - W'| / |W| (Frobenius) of one tensor, between 0 and 1.
        bits: 1 to 8 fixes the code's width instead, whatever the error; 0 lets `max_error` choose.
    """

    name = "share_kmeans"
    pillar = "compress"

    max_error: float = 0.01
    bits: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.max_error < 1:
            raise InputError(f"share_kmeans: max_error={self.max_error}: expected between 0 and 1")
        if not isinstance(self.bits, int) or self.bits not in range(9):
            raise InputError(f"share_kmeans: bits={self.bits}: expected 1 to 8, or 0 to choose")

    @classmethod
    def space(cls) -> Mapping[str, Sequence[Any]]:
        return {"max_error": (0.01, 0.02, 0.05, 0.1)}

    def encode(self, weight: Tensor, inputs: LayerInputs | None = None) -> CodebookWeight:
        values = weight.flatten()
        for bits in (self.bits,) if self.bits else range(self._likely_bits(values), 9):
            book = storable_book(kmeans_1d(_sample(values, SAMPLE), 2**bits))
            codes, error = _encode(weight.flatten(1), book.float())
            if self.bits or error <= self.max_error:
                return CodebookWeight.from_codes(tuple(weight.shape), bits, codes, book[None])
        raise NotApplicableError(
            f"256 shared values leave an error above max_error={self.max_error}"
        )

    def _likely_bits(self, values: Tensor) -> int:
        """Fewest bits that keep the bound on a small sample; the whole tensor decides."""
        sample = _sample(values, SMALL_SAMPLE)
        for bits in range(1, 8):
            centres = kmeans_1d(sample, 2**bits)
            error = sample - centres[nearest_code(sample, centres).int()]
            if error.norm() <= self.max_error * sample.norm():
                return bits
        return 8


def _sample(values: Tensor, count: int) -> Tensor:
    """About `count` values in even steps, and both extremes."""
    stride = -(-values.numel() // count)
    return torch.cat([values[::stride].float(), torch.stack(torch.aminmax(values)).float()])


def _encode(matrix: Tensor, centres: Tensor) -> tuple[Tensor, float]:
    """Codes of the nearest centres, (out, in) uint8, and |W - W'| / |W|; some rows at a time."""
    codes, lost, total = [], 0.0, 0.0
    for rows in matrix.split(max(1, SAMPLE // matrix.shape[1])):
        codes.append(nearest_code(rows, centres))
        error = rows.float() - centres[codes[-1].int()]
        lost += float(error.double().square().sum())
        total += float(rows.double().square().sum())
    return torch.cat(codes), (lost / total) ** 0.5 if total else 0.0
