"""Weights that share a small set of values: a code each, and the values in a codebook."""

from typing import Any

import torch
from torch import Tensor

from tauten.core.errors import InputError
from tauten.formats.bits import pack, packed_bytes, unpack
from tauten.formats.packed import PackedWeight, take_rows


class CodebookWeight(PackedWeight):
    """weight = codebook[book of its row, code].

    Buffers:
        codes: (out, packed_bytes(in, bits)) uint8, laid out by `bits.pack`.
        codebook: (books, 2**bits) float16 or float32; one book for all rows, or one a row.
    """

    kind = "codebook"
    codes: Tensor
    codebook: Tensor

    def __init__(self, shape: tuple[int, ...], bits: int, tensors: dict[str, Tensor]):
        super().__init__()
        self.shape, self.bits = tuple(shape), bits
        self.register_buffer("codes", tensors["codes"])
        self.register_buffer("codebook", tensors["codebook"])

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
        return unpack(take_rows(self.codes, rows), self.bits, self.in_features)

    def dequantize_rows(self, rows: Tensor | slice, dtype: torch.dtype = torch.float32) -> Tensor:
        codes = self.integer_codes(rows).int()
        if self.codebook.shape[0] == 1:
            return self.codebook[0].to(dtype)[codes]
        return take_rows(self.codebook, rows).to(dtype).gather(1, codes.long())

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
