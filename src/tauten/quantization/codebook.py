"""Codebooks: each row of a weight has its own few values, placed where they matter most."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tauten.core.errors import InputError
from tauten.core.inputs import LayerInputs
from tauten.core.knobs import check_activation, check_damping
from tauten.core.technique import CalibratedTechnique
from tauten.formats.codebook import CodebookWeight
from tauten.solvers.kmeans import kmeans_1d, nearest_code, storable_book
from tauten.solvers.refit import refit_books
from tauten.solvers.second_order import curvature, damped, descend, sweep

CHUNK_WEIGHTS = 2**20  # rows that k-means works on at once, so that temporaries stay small


@dataclass(frozen=True)
class Codebook(CalibratedTechnique):
    """Non-uniform levels, a codebook a row, that keep the outputs of each layer.

    Books start as k-means of each row, its values weighted by the strength of their inputs. Codes
    are chosen column by column, as `gptq` does; then books and codes take turns, each the best for
    the other. A weight whose inputs weren't seen (an embedding) keeps the books of k-means.

    A book of 2**bits float16 values a row is stored beside the codes: for rows of 576 weights
    0.11 bits a weight at 2 bits, 0.22 at 3, 0.44 at 4.

    Attributes:
        bits: 2 to 4.
        rounds: How often books and codes take turns.
        damping: Added to the diagonal of the second moment, relative to its mean.
        activation: As for `rtn`.

    Source: importance-weighted k-means of SqueezeLLM, Kim et al. 2023, arXiv:2306.07629, section
    4.1, with the second moment of inputs for the Fisher information; then LNQ of Kim et al. 2025,
    arXiv:2505.07004, algorithm 1, with one start by the sweep of GPTQ.
    """

    name = "codebook"
    pillar = "quantize"

    bits: int = 4
    rounds: int = 2
    damping: float = 0.01
    activation: str = "float"

    def __post_init__(self) -> None:
        if not isinstance(self.bits, int) or self.bits not in range(2, 5):
            raise InputError(f"codebook: bits={self.bits}: expected 2, 3 or 4")
        if not isinstance(self.rounds, int) or self.rounds < 0:
            raise InputError(f"codebook: rounds={self.rounds}: expected 0 or a positive integer")
        check_damping(self.name, self.damping)
        check_activation(self.name, self.activation)

    @classmethod
    def space(cls) -> Mapping[str, Sequence[Any]]:
        return {"bits": (4, 3, 2)}

    def encode(self, weight: Tensor, inputs: LayerInputs | None = None) -> CodebookWeight:
        matrix, importance = weight.flatten(1), None
        if inputs is not None:
            importance = inputs.moment.diagonal()
        chunks = matrix.split(max(1, CHUNK_WEIGHTS // matrix.shape[1]))
        found = [kmeans_1d(rows, 2**self.bits, importance) for rows in chunks]
        books = storable_book(torch.cat(found))
        if inputs is None:
            chunks_of_books = books.float().split(len(chunks[0]))
            pairs = zip(chunks, chunks_of_books, strict=True)
            codes = torch.cat([nearest_code(rows, own) for rows, own in pairs])
        else:
            codes, books = self._fit(matrix.float(), inputs.moment, books)
        return CodebookWeight.from_codes(tuple(weight.shape), self.bits, codes, books)

    def _fit(self, matrix: Tensor, moment: Tensor, books: Tensor) -> tuple[Tensor, Tensor]:
        """Codes (out, in) and books of least output error, from books to start with."""
        curve = curvature(moment, self.damping, by_importance=True)
        moment = damped(moment, curve.damping)
        values = sweep(matrix, curve, _nearest_entry(books))
        for _ in range(self.rounds):
            codes = nearest_code(values, books.float())
            books = refit_books(matrix, moment, codes, books)
            values = books.float().gather(1, codes.long())
            books = books.sort(1).values
            values = descend(matrix, values, moment, _nearest_entry(books))
        return nearest_code(values, books.float()), books


def _nearest_entry(books: Tensor) -> Callable[[Tensor, int], Tensor]:
    """A function from a column's values to the nearest entries of their rows' books."""
    entries = books.float()

    def nearest(values: Tensor, _: int) -> Tensor:
        codes = nearest_code(values[:, None], entries)
        return entries.gather(1, codes.long())[:, 0]

    return nearest
