"""Weights whose rows are multiples of a few shared rows."""

from typing import Any

import torch
from torch import Tensor

from tauten.core.dtypes import dtype_name, dtype_named
from tauten.core.errors import CorruptError, InputError
from tauten.formats.packed import PackedWeight, take_rows
from tauten.formats.specs import SharedRowsSpec

ROW_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


class SharedRowsWeight(PackedWeight):
    """weight = scale[row] * shared[index[row]].

    A product with it is the product with the shared rows, gathered and scaled.

    Buffers:
        shared: (rows, in) float32, float16 or bfloat16.
        index: (out,) uint8, int16 or int32, the least that counts the shared rows.
        scale: (out,) float32, of either sign.
    """

    kind = "shared_rows"
    described_by = SharedRowsSpec
    shared: Tensor
    index: Tensor
    scale: Tensor

    def __init__(self, shape: tuple[int, ...], shared: Tensor, index: Tensor, scale: Tensor):
        super().__init__()
        self.shape = tuple(shape)
        self.register_buffer("shared", shared)
        self.register_buffer("index", index)
        self.register_buffer("scale", scale)

    @classmethod
    def from_rows(
        cls, shape: tuple[int, ...], shared: Tensor, index: Tensor, scale: Tensor
    ) -> "SharedRowsWeight":
        """Pack rows that a solver chose.

        Args:
            shape: Of the weight, (out, in, ...).
            shared: (rows, in) floating.
            index: (out,) integer, of the shared row of each row.
            scale: (out,) floating.
        Raises:
            InputError: An argument isn't that.
        """
        columns = int(torch.Size(shape[1:]).numel())
        if shared.dtype not in ROW_DTYPES or shared.dim() != 2 or shared.shape[1] != columns:
            got = f"{tuple(shared.shape)} {shared.dtype}"
            raise InputError(f"shared rows are {got}: expected (rows, {columns}) of {ROW_DTYPES}")
        if index.shape != shape[:1] or scale.shape != shape[:1]:
            raise InputError(f"index or scale isn't one a row: expected {shape[0]}")
        if int(index.min()) < 0 or int(index.max()) >= len(shared):
            raise InputError(f"an index isn't one of {len(shared)} shared rows")
        return cls(shape, shared, index.to(_index_dtype(len(shared))), scale.float())

    def spread(self, y: Tensor, dim: int = -1) -> Tensor:
        """Outputs of all rows from those of the shared ones, which lie along a dimension."""
        gathered = y.movedim(dim, -1).index_select(-1, self.index.int())
        return (gathered * self.scale.to(y.dtype)).movedim(-1, dim)

    def check_contents(self) -> None:
        wrong = self.index[(self.index < 0) | (self.index.int() >= len(self.shared))]
        if len(wrong):
            expected = f"expected 0 to {len(self.shared) - 1}"
            raise CorruptError(f"index of a shared row is {int(wrong[0])}: {expected}")

    def dequantize_rows(self, rows: Tensor | slice, dtype: torch.dtype = torch.float32) -> Tensor:
        index, scale = take_rows(self.index, rows), take_rows(self.scale, rows)
        return (self.shared.float()[index.int()] * scale[:, None]).to(dtype)

    def narrow(self, dim: int, start: int, length: int) -> "SharedRowsWeight":
        """As in `PackedWeight`; each part holds all shared rows."""
        shape, rows, columns = self._narrowed(dim, start, length)
        tensors = self.shared[:, columns], self.index[rows], self.scale[rows]
        return SharedRowsWeight(shape, *(tensor.clone() for tensor in tensors))

    def spec(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "shape": list(self.shape),
            "rows": len(self.shared),
            "dtype": dtype_name(self.shared.dtype),
        }

    @classmethod
    def empty(cls, spec: dict[str, Any]) -> "SharedRowsWeight":
        shape, rows = tuple(spec["shape"]), spec["rows"]
        dtype = dtype_named(spec["dtype"], ROW_DTYPES)
        shared = torch.empty(rows, torch.Size(shape[1:]).numel(), dtype=dtype, device="meta")
        index = torch.empty(shape[0], dtype=_index_dtype(rows), device="meta")
        return cls(shape, shared, index, torch.empty(shape[0], device="meta", dtype=torch.float32))


def _index_dtype(rows: int) -> torch.dtype:
    return torch.uint8 if rows <= 2**8 else torch.int16 if rows <= 2**15 else torch.int32
