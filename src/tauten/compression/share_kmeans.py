"""Weight sharing: the weights of a tensor, of each row or of some rows take a few shared values."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tauten.core.errors import InputError, NotApplicableError
from tauten.core.inputs import LayerInputs
from tauten.core.knobs import check_activation
from tauten.core.technique import CalibratedTechnique
from tauten.formats.codebook import CodebookWeight
from tauten.solvers.kmeans import kmeans_1d, nearest_code, storable_book

SAMPLE = 2**20  # values of a group that k-means looks at; more move centres less than rounding does
SMALL_SAMPLE = 2**14


@dataclass(frozen=True)
class ShareKMeans(CalibratedTechnique):
    """Find the fewest shared values that keep each tensor within an error bound. Needs no data.

    With data, errors count by how strong the input of their column is, in k-means and in the
    bound.

    Attributes:
        max_error: Largest acceptable |W - W'| / |W| (Frobenius) of one tensor, between 0 and 1.
        bits: 1 to 8 fixes the code's width instead, whatever the error; 0 lets `max_error` choose.
        book_rows: Rows that share a codebook; 0 for one of the whole tensor, 1 for one a row.
        weighted: Look at data if there is some, which takes passes over it.
        activation: `float` multiplies by activations as they are; `int8` rounds them to 8 bits a
            token, and shared values to 8 bits too: faster with codes of at most 4 bits, and a
            little less exact.

    Source: trained quantization and weight sharing of Han et al. 2016, arXiv:1510.00149,
    section 3, without retraining; the number of values is chosen by the error, not given. Weights
    of errors as in SqueezeLLM, Kim et al. 2023, arXiv:2306.07629, section 4.1, with the second
    moment of inputs for the Fisher information.
    """

    name = "share_kmeans"
    pillar = "compress"

    max_error: float = 0.01
    bits: int = 0
    book_rows: int = 0
    weighted: bool = True
    activation: str = "float"

    @property
    def looks_at_inputs(self) -> bool:
        return self.weighted

    def __post_init__(self) -> None:
        if not 0 < self.max_error < 1:
            raise InputError(f"share_kmeans: max_error={self.max_error}: expected between 0 and 1")
        if not isinstance(self.bits, int) or self.bits not in range(9):
            raise InputError(f"share_kmeans: bits={self.bits}: expected 1 to 8, or 0 to choose")
        if not isinstance(self.book_rows, int) or self.book_rows < 0:
            got = f"share_kmeans: book_rows={self.book_rows}"
            raise InputError(f"{got}: expected 0 or a positive integer")
        check_activation(self.name, self.activation)

    @classmethod
    def space(cls) -> Mapping[str, Sequence[Any]]:
        return {"max_error": (0.01, 0.02, 0.05, 0.1)}

    def encode(self, weight: Tensor, inputs: LayerInputs | None = None) -> CodebookWeight:
        matrix = weight.flatten(1)
        rows = min(self.book_rows or len(matrix), len(matrix))
        strength = torch.ones(matrix.shape[1], dtype=torch.float32)
        if inputs is not None and bool(inputs.moment.diagonal().any()):
            strength = inputs.moment.diagonal()
        first = self.bits or self._likely_bits(matrix, strength, rows)
        for bits in (self.bits,) if self.bits else range(first, 9):
            samples = (_sample(cells, strength, SAMPLE) for cells in _groups(matrix, rows))
            found = [kmeans_1d(values, 2**bits, counts) for values, counts in samples]
            books = storable_book(torch.cat(found))
            codes, error = _encode(matrix, strength, books.float(), rows)
            if self.bits or error <= self.max_error:
                return CodebookWeight.from_codes(tuple(weight.shape), bits, codes, books, rows)
        raise NotApplicableError(
            f"256 shared values leave an error above max_error={self.max_error}"
        )

    def _likely_bits(self, matrix: Tensor, strength: Tensor, rows: int) -> int:
        """Fewest bits that keep the bound on a small sample; the whole tensor decides."""
        cells = matrix[: len(matrix) // rows * rows].reshape(-1, rows * matrix.shape[1])
        cells = cells[:: -(-cells.numel() // SMALL_SAMPLE)]
        values, counts = _sample(cells, strength, SMALL_SAMPLE)
        for bits in range(1, 8):
            centres = kmeans_1d(values, 2**bits, counts)
            error = values - centres.gather(1, nearest_code(values, centres).long())
            bound = self.max_error**2 * (values.square() * counts).sum()
            if (error.square() * counts).sum() <= bound:
                return bits
        return 8


def _groups(matrix: Tensor, rows: int) -> Iterator[Tensor]:
    """The values of some rows together, some such groups at a time: (groups, rows * in)."""
    whole = len(matrix) // rows * rows
    step = max(1, SAMPLE // (rows * matrix.shape[1])) * rows
    for part in matrix[:whole].split(step):
        yield part.reshape(-1, rows * matrix.shape[1])
    if whole < len(matrix):
        yield matrix[whole:].reshape(1, -1)


def _sample(cells: Tensor, strength: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """About `count` values of each group in even steps with both extremes, and their weights.

    Args:
        cells: (groups, rows * in).
        strength: (in,) how much the squared errors of a column count.
    Returns:
        (groups, values) float32 and (values,).
    """
    stride = -(-cells.shape[1] // count)
    counts = strength[torch.arange(0, cells.shape[1], stride) % len(strength)]
    if stride == 1:
        return cells.float(), counts
    ends = torch.stack(torch.aminmax(cells, dim=1), 1)
    values = torch.cat([cells[:, ::stride], ends], 1).float()
    return values, torch.cat([counts, strength.mean().expand(2)])


def _encode(matrix: Tensor, strength: Tensor, books: Tensor, rows: int) -> tuple[Tensor, float]:
    """Codes of the nearest centres, (out, in) uint8, and |W - W'| / |W|; some rows at a time."""
    codes, lost, total = [], 0.0, 0.0
    for index in torch.arange(len(matrix)).split(max(1, SAMPLE // matrix.shape[1])):
        values, centres = matrix[index].float(), books[index // rows]
        codes.append(nearest_code(values, centres))
        error = values - centres.gather(1, codes[-1].long())
        lost += float((error.double().square() @ strength.double()).sum())
        total += float((values.double().square() @ strength.double()).sum())
    return torch.cat(codes), (lost / total) ** 0.5 if total else 0.0
