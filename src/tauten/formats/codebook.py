"""Weights that share a small set of values: a code each, and the values in a codebook."""

from typing import Any

import torch
from torch import Tensor

from tauten.core.errors import InputError
from tauten.formats.bits import pack, packed_bytes
from tauten.formats.interleaved import (
    ROWS,
    Interleavable,
    interleave_codes,
    interleave_rows,
    take_codes,
)
from tauten.formats.packed import PackedWeight, take_rows


class CodebookWeight(Interleavable, PackedWeight):
    """weight = codebook[book of its row, code].

    Buffers:
        codes: (out, packed_bytes(in, bits)) uint8, laid out by `bits.pack`.
        codebook: (books, 2**bits) float16 or float32; one book for all rows, or one a row.
        table: Only while interleaved: entries of the codebooks rounded to int8, (blocks, 4, 4, 16)
            for rows 0, 4, 8, 12 of a block, then rows 1, 5, 9, 13 and so on.
        step: Only while interleaved: (blocks, 1, 16) float32, what a unit of `table` stands for.
        entries: Only while interleaved: float32 entries, (16,) of one book for all rows, or
            (blocks, 2**bits, 16).
    """

    kind = "codebook"
    codes: Tensor
    codebook: Tensor
    table: Tensor | None
    step: Tensor | None
    entries: Tensor | None

    def __init__(self, shape: tuple[int, ...], bits: int, tensors: dict[str, Tensor]):
        super().__init__()
        self.shape, self.bits = tuple(shape), bits
        self.register_buffer("codes", tensors["codes"])
        self.register_buffer("codebook", tensors["codebook"])
        self.register_buffer("table", None, persistent=False)
        self.register_buffer("step", None, persistent=False)
        self.register_buffer("entries", None, persistent=False)

    @classmethod
    def from_codes(
        cls, shape: tuple[int, ...], bits: int, codes: Tensor, codebook: Tensor
    ) -> "CodebookWeight":
        """Pack codes (out, in) uint8 that index a codebook (1 or out, 2**bits) floating."""
        if bits not in range(1, 9):
            raise InputError(f"bits={bits}: expected an integer from 1 to 8")
        return cls(shape, bits, {"codes": pack(codes, bits), "codebook": codebook})

    def integer_codes(self, rows: Tensor | slice = slice(None)) -> Tensor:
        """(rows, in) uint8 codes."""
        return take_codes(self.codes, rows, self.bits, (self.out_features, self.in_features))

    def rounded_codebook(self) -> tuple[Tensor, Tensor]:
        """Entries as int8 (books, 2**bits) and their step (books, 1) float32: entry * step."""
        values = self.codebook.float()
        step = values.abs().amax(1, keepdim=True) / 127
        inverse = torch.where(step >= torch.finfo(torch.float32).tiny, 1 / step, 0.0)
        return (values * inverse).round().to(torch.int8), step

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
        book = self.codebook.float()
        if len(book) == 1:
            return torch.nn.functional.pad(book[0], (0, 16 - book.shape[1]))
        return interleave_rows(book)

    def row_tensors(self) -> dict[str, Tensor | None]:
        """The codes as on disk."""
        codes = pack(self.integer_codes(), self.bits)
        return {"codes": codes, "table": None, "step": None, "entries": None}

    def dequantize_rows(self, rows: Tensor | slice, dtype: torch.dtype = torch.float32) -> Tensor:
        codes = self.integer_codes(rows).int()
        if self.codebook.shape[0] == 1:
            return self.codebook[0].to(dtype)[codes]
        return take_rows(self.codebook, rows).to(dtype).gather(1, codes.long())

    def narrow(self, dim: int, start: int, length: int) -> "CodebookWeight":
        shape, rows, columns = self._narrowed(dim, start, length)
        codes = self.integer_codes(rows)[:, columns].clone()
        books = self.codebook if len(self.codebook) == 1 else self.codebook[rows]
        return CodebookWeight.from_codes(shape, self.bits, codes, books.clone())

    def code_layouts(self) -> dict[str, tuple[int, int]]:
        return {"codes": (self.bits, self.in_features)}

    def spec(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "shape": list(self.shape),
            "bits": self.bits,
            "books": self.codebook.shape[0],
            "codebook_dtype": str(self.codebook.dtype).removeprefix("torch."),
        }

    @classmethod
    def empty(cls, spec: dict[str, Any]) -> "CodebookWeight":
        shape, bits, books = tuple(spec["shape"]), spec["bits"], spec["books"]
        if bits not in range(1, 9) or books not in (1, shape[0]):
            raise ValueError("bits or books is out of range")
        if spec["codebook_dtype"] not in ("float16", "float32"):
            raise ValueError("codebook_dtype is unknown")
        columns = int(torch.Size(shape[1:]).numel())
        codes = torch.empty(shape[0], packed_bytes(columns, bits), dtype=torch.uint8, device="meta")
        dtype = getattr(torch, spec["codebook_dtype"])
        codebook = torch.empty(books, 2**bits, dtype=dtype, device="meta")
        return cls(shape, bits, {"codes": codes, "codebook": codebook})
