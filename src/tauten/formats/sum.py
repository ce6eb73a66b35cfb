"""The sum of two packed weights: a second pass holds what the first one leaves."""

from typing import Any

import torch
from torch import Tensor

from tauten.core.errors import InputError
from tauten.formats.packed import PackedWeight, from_spec
from tauten.formats.specs import SumSpec


class SumWeight(PackedWeight):
    """weight = first + second, and a product with it is the sum of two products.

    Args:
        first: Any packed weight.
        second: Of the same shape.
    Raises:
        InputError: The shapes differ.
    """

    kind = "sum"
    described_by = SumSpec

    def __init__(self, first: PackedWeight, second: PackedWeight):
        super().__init__()
        if first.shape != second.shape:
            raise InputError(f"a sum of {first.shape} and {second.shape}: expected one shape")
        self.shape, self.first, self.second = first.shape, first, second

    @property
    def label(self) -> str:
        return f"{self.first.label} + {self.second.label}"

    @property
    def size_bytes(self) -> int:
        return self.first.size_bytes + self.second.size_bytes

    def dequantize_rows(self, rows: Tensor | slice, dtype: torch.dtype = torch.float32) -> Tensor:
        return self.first.dequantize_rows(rows, dtype) + self.second.dequantize_rows(rows, dtype)

    def narrow(self, dim: int, start: int, length: int) -> "SumWeight":
        parts = (part.narrow(dim, start, length) for part in (self.first, self.second))
        return SumWeight(*parts)

    def spec(self) -> dict[str, Any]:
        return {"kind": self.kind, "first": self.first.spec(), "second": self.second.spec()}

    @classmethod
    def empty(cls, spec: dict[str, Any]) -> "SumWeight":
        return cls(from_spec(spec["first"]), from_spec(spec["second"]))
