"""Weights that share a small set of values: a code each, and the values in a codebook."""

from typing import Any

import torch
from torch import Tensor

from tauten.core.dtypes import dtype_name, dtype_named
from tauten.core.errors import InputError
from tauten.formats.bits import pack, packed_bytes
from tauten.formats.interleaved import (
    ROWS,
    Interleavable,
    interleave_codes,
    interleave_rows,
    interleaved_code_bytes,
    padded_rows,
    take_codes,
)
from tauten.formats.packed import SCALE_DTYPES, PackedWeight, take_rows
from tauten.formats.specs import CodebookSpec


class CodebookWeight(Interleavable, PackedWeight):
    """weight = codebook[row // book_rows, code].

    Buffers:
        codes: (out, packed_bytes(in, bits)) uint8, laid out by `bits.pack`.
        codebook: (books, 2**bits) float16 or float32; each for `book_rows` rows, the last perhaps
            for fewer.
        table: Only while interleaved: entries of the codebooks rounded to int8, (blocks, 4, 4, 16)
            for rows 0, 4, 8, 12 of a block, then rows 1, 5, 9, 13 and so on.
        step: Only while interleaved: (blocks, 1, 16) float32, what a unit of `table` stands for.
        entries: Only while interleaved: float32 entries, (16,) of one book for all rows, or
            (blocks, 16, 16) of a book a row; books of fewer are repeated.
    """

    kind = "codebook"
    described_by = CodebookSpec
    codes: Tensor
    codebook: Tensor
    table: Tensor | None
    step: Tensor | None
    entries: Tensor | None

    def __init__(
        self, shape: tuple[int, ...], bits: int, tensors: dict[str, Tensor], book_rows: int = 0
    ):
        super().__init__()
        self.shape, self.bits = tuple(shape), bits
        books, rows = len(tensors["codebook"]), self.shape[0]
        self.book_rows = book_rows or (1 if books > 1 else rows)
        if self.book_rows < 1 or books != -(-rows // self.book_rows):
            got = f"{books} codebooks of {self.book_rows} rows"
            raise InputError(f"{got}: expected as many as {rows} rows need")
        self.register_buffer("codes", tensors["codes"])
        self.register_buffer("codebook", tensors["codebook"])
        self.register_buffer("table", None, persistent=False)
        self.register_buffer("step", None, persistent=False)
        self.register_buffer("entries", None, persistent=False)

    @classmethod
    def from_codes(
        cls,
        shape: tuple[int, ...],
        bits: int,
        codes: Tensor,
        codebook: Tensor,
        book_rows: int = 0,
    ) -> "CodebookWeight":
        """Pack codes that index codebooks.

        Args:
            shape: Of the weight, (out, in, ...).
            bits: Of a code, 1 to 8.
            codes: (out, in) uint8.
            codebook: (books, 2**bits) floating.
            book_rows: Rows that share a book; 0 for one book for all of them, or one a row.
        Raises:
            InputError: `bits` is out of range, or books don't fit the rows.
        """
        if bits not in range(1, 9):
            raise InputError(f"bits={bits}: expected an integer from 1 to 8")
        return cls(shape, bits, {"codes": pack(codes, bits), "codebook": codebook}, book_rows)

    def by_row(self, books: Tensor) -> Tensor:
        """What stands once a book, (books, n), once for all rows (1, n) or once a row (out, n)."""
        if len(books) in (1, self.out_features):
            return books
        return books.repeat_interleave(self.book_rows, 0)[: self.out_features]

    def integer_codes(self, rows: Tensor | slice = slice(None)) -> Tensor:
        """(rows, in) uint8 codes."""
        return take_codes(self.codes, rows, self.bits, (self.out_features, self.in_features))

    def rounded_codebook(self) -> tuple[Tensor, Tensor]:
        """Entries / step as int8, and step (float32), `by_row`: (.., 2**bits) and (.., 1)."""
        values = self.by_row(self.codebook).float()
        step = values.abs().amax(1, keepdim=True) / 127
        inverse = torch.where(step >= torch.finfo(torch.float32).tiny, 1 / step, 0.0)
        return (values * inverse).round().to(torch.int8), step

    @property
    def interleaved_bytes(self) -> int:
        rows = padded_rows(self.out_features)
        entries = 16 * (1 if len(self.codebook) == 1 else rows)
        book_bytes = self.codebook.nbytes + 16 * rows + 4 * rows + 4 * entries  # table, step
        return interleaved_code_bytes(rows, self.in_features, self.bits) + book_bytes

    def interleaved_tensors(self) -> dict[str, Tensor | None]:
        """Codes for the kernels, the codebook rounded and in float32; at most 4 bits."""
        entries, step = (part.expand(self.out_features, -1) for part in self.rounded_codebook())
        missing = (0, 16 - entries.shape[1], 0, -self.out_features % ROWS)
        table = torch.nn.functional.pad(entries, missing).view(-1, 4, 4, 16)
        return {
            "codes": interleave_codes(self.codes, self.bits, self.in_features),
            "table": table.transpose(1, 2).contiguous(),
            "step": interleave_rows(step),
            "entries": self._float_entries(),
        }

    def _float_entries(self) -> Tensor:
        book = self.by_row(self.codebook).float()
        book = book.repeat(1, 16 // book.shape[1])
        if len(book) == 1:
            return book[0]
        return torch.nn.functional.pad(book, (0, 0, 0, -len(book) % ROWS)).view(-1, ROWS, 16)

    def row_tensors(self) -> dict[str, Tensor | None]:
        """The codes as on disk."""
        codes = pack(self.integer_codes(), self.bits)
        return {"codes": codes, "table": None, "step": None, "entries": None}

    def dequantize_rows(self, rows: Tensor | slice, dtype: torch.dtype = torch.float32) -> Tensor:
        codes = self.integer_codes(rows).int()
        if self.codebook.shape[0] == 1:
            return self.codebook[0].to(dtype)[codes]
        return take_rows(self.by_row(self.codebook), rows).to(dtype).gather(1, codes.long())

    def narrow(self, dim: int, start: int, length: int) -> "CodebookWeight":
        shape, rows, columns = self._narrowed(dim, start, length)
        codes = self.integer_codes(rows)[:, columns].clone()
        books = self.by_row(self.codebook)
        books = books if len(books) == 1 else books[rows]
        return CodebookWeight.from_codes(shape, self.bits, codes, books.clone())

    def code_layouts(self) -> dict[str, tuple[int, int]]:
        return {"codes": (self.bits, self.in_features)}

    def spec(self) -> dict[str, Any]:
        books = len(self.codebook)
        shared = {} if books in (1, self.shape[0]) else {"book_rows": self.book_rows}
        return {
            "kind": self.kind,
            "shape": list(self.shape),
            "bits": self.bits,
            "books": books,
            "codebook_dtype": dtype_name(self.codebook.dtype),
            **shared,
        }

    @classmethod
    def empty(cls, spec: dict[str, Any]) -> "CodebookWeight":
        shape, bits, books = tuple(spec["shape"]), spec["bits"], spec["books"]
        columns = int(torch.Size(shape[1:]).numel())
        codes = torch.empty(shape[0], packed_bytes(columns, bits), dtype=torch.uint8, device="meta")
        dtype = dtype_named(spec["codebook_dtype"], SCALE_DTYPES)
        codebook = torch.empty(books, 2**bits, dtype=dtype, device="meta")
        return cls(shape, bits, {"codes": codes, "codebook": codebook}, spec.get("book_rows", 0))
