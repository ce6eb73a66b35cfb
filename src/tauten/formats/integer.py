"""Integer weights of 1 to 8 bits, one scale a row or a group of columns."""

from typing import Any, ClassVar

import torch
from torch import Tensor

from tauten.core.dtypes import dtype_name, dtype_named
from tauten.core.errors import InputError
from tauten.formats.bits import pack, packed_bytes, unpack
from tauten.formats.interleaved import (
    Interleavable,
    interleave_codes,
    interleave_rows,
    interleaved_code_bytes,
    padded_rows,
    take_codes,
    take_groups,
)
from tauten.formats.packed import SCALE_DTYPES, PackedWeight
from tauten.formats.specs import IntegerSpec

ZERO_KINDS = ("none", "integer", "float")


def fits_float16(values: Tensor) -> Tensor:
    """Which values float16 keeps to its full precision: bool of the same shape."""
    magnitude, half = values.abs(), torch.finfo(torch.float16)
    return (magnitude <= half.max) & ((magnitude >= half.tiny) | (magnitude == 0))


def center(bits: int) -> float:
    """Code that stands for 0 on a symmetric grid; 1 bit has the levels -0.5 and 0.5."""
    return 2 ** (bits - 1) if bits > 1 else 0.5


class IntegerWeight(Interleavable, PackedWeight):
    """weight = scale * (code - zero), or scale * code + offset where the zero is `float`.

    Columns are cut into groups of `group_size` (0: one group a row); the last group is shorter
    where the size doesn't divide. 8-bit codes are stored as two's complement, so that an int8
    product can read them in place; smaller ones as `bits.pack` lays them out, row by row.

    Buffers:
        codes: (out, packed_bytes(in, bits)) uint8.
        scale: (out, groups) float16, or float32 where float16 would lose its range.
        zero: Absent on a symmetric grid (zero is then `center(bits)`); for an integer zero
            (packed_bytes(out * groups, bits),) uint8; for a float offset as `scale`.
    """

    kind = "integer"
    described_by: ClassVar[Any] = IntegerSpec
    codes: Tensor
    scale: Tensor
    zero: Tensor | None

    def __init__(
        self,
        shape: tuple[int, ...],
        bits: int,
        group_size: int,
        zero_kind: str,
        tensors: dict[str, Tensor],
    ):
        super().__init__()
        self.shape, self.bits, self.group_size = tuple(shape), bits, group_size
        self.zero_kind = zero_kind
        self.register_buffer("codes", tensors["codes"])
        self.register_buffer("scale", tensors["scale"])
        self.register_buffer("zero", tensors.get("zero"))

    @property
    def columns_per_group(self) -> int:
        """Columns that share a scale."""
        return self.group_size or self.in_features

    @property
    def groups(self) -> int:
        """Groups in a row."""
        return -(-self.in_features // self.columns_per_group)

    @classmethod
    def encode(
        cls, weight: Tensor, bits: int, group_size: int, scale: Tensor, zero: Tensor | None
    ) -> "IntegerWeight":
        """Round a weight to the nearest level of a given grid.

        Args:
            weight: (out, in, ...) floating.
            bits: 1 to 8.
            group_size: Columns a scale; 0 for the whole row.
            scale: (out, groups) float16 or float32, positive.
            zero: None, (out, groups) uint8 codes of zero, or floating offsets like `scale`.
        """
        shape = tuple(weight.shape)
        _check_grid(bits, group_size)
        codes = round_to_grid(weight.flatten(1), bits, group_size, scale, zero)
        return cls.from_codes(shape, bits, group_size, codes, scale, zero)

    @classmethod
    def from_codes(
        cls,
        shape: tuple[int, ...],
        bits: int,
        group_size: int,
        codes: Tensor,
        scale: Tensor,
        zero: Tensor | None,
    ) -> "IntegerWeight":
        """Pack codes that a solver chose: codes (out, in) uint8; the rest as in `encode`."""
        _check_grid(bits, group_size)
        packed = cls.pack_codes(codes, bits)
        return cls.from_packed(shape, bits, group_size, packed, scale, zero)

    @classmethod
    def from_packed(
        cls,
        shape: tuple[int, ...],
        bits: int,
        group_size: int,
        packed: Tensor,
        scale: Tensor,
        zero: Tensor | None,
    ) -> "IntegerWeight":
        """As `from_codes`, with codes that `pack_codes` has packed already."""
        tensors = {"codes": packed ^ 0x80 if bits == 8 else packed, "scale": scale}
        kind = "none"
        if zero is not None:
            kind = "float" if zero.is_floating_point() else "integer"
            tensors["zero"] = zero if kind == "float" else pack(zero.flatten(), bits)
        return cls(shape, bits, group_size, kind, tensors)

    @classmethod
    def pack_codes(cls, codes: Tensor, bits: int) -> Tensor:
        """Codes (rows, in) uint8 as they stand by rows, (rows, bytes) uint8."""
        return pack(codes, bits)

    def integer_codes(self, rows: Tensor | slice = slice(None)) -> Tensor:
        """(rows, in) uint8 codes."""
        size = (self.out_features, self.in_features)
        codes = take_codes(self.codes, rows, self.bits, size)
        return codes ^ 0x80 if self.bits == 8 else codes

    def integer_zero(self) -> Tensor | None:
        """(out, groups) uint8 codes of zero, None unless `zero_kind` is integer."""
        if self.zero is None or self.zero_kind != "integer":
            return None
        if self.interleaved:
            return take_groups(self.zero, slice(None), self.out_features)
        return unpack(self.zero, self.bits, self.out_features * self.groups).view(-1, self.groups)

    def dequantize_rows(self, rows: Tensor | slice, dtype: torch.dtype = torch.float32) -> Tensor:
        zero, count = self.zero, self.out_features
        if self.zero_kind == "integer" and not self.interleaved:
            zero = self.integer_zero()
        zero = None if zero is None else take_groups(zero, rows, count)
        codes = self.integer_codes(rows).float()
        grid = (take_groups(self.scale, rows, count), zero)
        return grid_values(codes, self.bits, self.columns_per_group, *grid).to(dtype)

    @property
    def interleaved_bytes(self) -> int:
        rows, zero_bytes = padded_rows(self.out_features), 0
        if self.zero is not None:
            zero_bytes = 1 if self.zero_kind == "integer" else self.zero.itemsize
        grid_bytes = rows * self.groups * (self.scale.itemsize + zero_bytes)
        return interleaved_code_bytes(rows, self.in_features, self.bits) + grid_bytes

    def interleaved_tensors(self) -> dict[str, Tensor]:
        """The tensors for the kernels; an integer zero takes a byte."""
        codes = interleave_codes(self.codes, self.bits, self.in_features)
        tensors = {"codes": codes, "scale": interleave_rows(self.scale)}
        zero = self.integer_zero() if self.zero_kind == "integer" else self.zero
        return tensors if zero is None else tensors | {"zero": interleave_rows(zero)}

    def row_tensors(self) -> dict[str, Tensor]:
        """The tensors as on disk."""
        rows, count = slice(None), self.out_features
        codes = take_codes(self.codes, rows, self.bits, (count, self.in_features))
        tensors = {"codes": self.pack_codes(codes, self.bits)}
        tensors["scale"] = take_groups(self.scale, rows, count)
        if self.zero is not None:
            zero = take_groups(self.zero, rows, count)
            integer = self.zero_kind == "integer"
            tensors["zero"] = pack(zero.flatten(), self.bits) if integer else zero
        return tensors

    def narrow(self, dim: int, start: int, length: int) -> "IntegerWeight":
        shape, rows, columns = self._narrowed(dim, start, length)
        size, count = self.columns_per_group, self.out_features
        ends_group = columns.stop % size == 0 or columns.stop == self.in_features
        if self.group_size and (columns.start % size or not ends_group):
            raise InputError(
                f"columns {columns.start} to {columns.stop} cut a group: expected multiples of "
                f"group_size={size}; deal columns out in units of it (unit={size})"
            )
        groups = slice(columns.start // size, -(-columns.stop // size))
        zero = self.integer_zero() if self.zero_kind == "integer" else self.zero
        if zero is not None:
            zero = take_groups(zero, rows, count)[:, groups].clone()
        scale = take_groups(self.scale, rows, count)[:, groups].clone()
        codes = self.integer_codes(rows)[:, columns]
        return self.from_codes(shape, self.bits, self.group_size, codes, scale, zero)

    def code_layouts(self) -> dict[str, tuple[int, int]]:
        layouts = {"codes": (self.bits, self.in_features)}
        if self.zero_kind == "integer":
            layouts["zero"] = (self.bits, self.out_features * self.groups)
        return layouts

    def spec(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "shape": list(self.shape),
            "bits": self.bits,
            "group_size": self.group_size,
            "zero": self.zero_kind,
            "scale_dtype": dtype_name(self.scale.dtype),
        }

    @classmethod
    def empty(cls, spec: dict[str, Any]) -> "IntegerWeight":
        shape, bits, group_size = tuple(spec["shape"]), spec["bits"], spec["group_size"]
        rows, columns = shape[0], int(torch.Size(shape[1:]).numel())
        groups = -(-columns // (group_size or columns))
        dtype = dtype_named(spec["scale_dtype"], SCALE_DTYPES)
        scale = torch.empty(rows, groups, dtype=dtype, device="meta")
        codes = torch.empty(rows, packed_bytes(columns, bits), dtype=torch.uint8, device="meta")
        tensors = {"codes": codes, "scale": scale}
        if spec["zero"] == "float":
            tensors["zero"] = torch.empty_like(scale)
        elif spec["zero"] == "integer":
            length = packed_bytes(rows * groups, bits)
            tensors["zero"] = torch.empty(length, dtype=torch.uint8, device="meta")
        return cls(shape, bits, group_size, spec["zero"], tensors)


def grouped(matrix: Tensor, size: int) -> Tensor:
    """(rows, columns) cut into (rows, groups, size), the last group padded with zeros.

    A group longer than a row ends with it.
    """
    size = min(size, matrix.shape[1])
    missing = -matrix.shape[1] % size
    cells: Tensor = torch.nn.functional.pad(matrix, (0, missing)).unflatten(1, (-1, size))
    return cells


def round_to_grid(
    matrix: Tensor, bits: int, group_size: int, scale: Tensor, zero: Tensor | None
) -> Tensor:
    """Codes of the levels nearest to a matrix: (out, in) floating -> (out, in) uint8."""
    size = group_size or matrix.shape[1]
    cells = grouped(matrix.float(), size)  # (out, groups, size)
    if zero is not None and zero.is_floating_point():
        cells = (cells - zero.float()[..., None]) / scale.float()[..., None]
    else:
        shift = center(bits) if zero is None else zero.float()[..., None]
        cells = cells / scale.float()[..., None] + shift
    return cells.round_().clamp_(0, 2**bits - 1).to(torch.uint8).flatten(1)[:, : matrix.shape[1]]


def grid_values(codes: Tensor, bits: int, size: int, scale: Tensor, zero: Tensor | None) -> Tensor:
    """Levels that codes stand for: (rows, in) float32 -> (rows, in) float32."""
    columns = codes.shape[1]
    cells = grouped(codes, size)
    scale = scale.float()[..., None]
    if zero is not None and zero.is_floating_point():
        cells = cells * scale + zero.float()[..., None]
    else:
        cells = (cells - (center(bits) if zero is None else zero.float()[..., None])) * scale
    return cells.flatten(1)[:, :columns]


def _check_grid(bits: int, group_size: int) -> None:
    if bits not in range(1, 9):
        raise InputError(f"bits={bits}: expected an integer from 1 to 8")
    if group_size < 0:
        raise InputError(f"group_size={group_size}: expected 0 (per channel) or a positive integer")
