"""Pruned weights: a mask of what is kept, and the kept values; zeros take no room."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tauten.core.dtypes import dtype_name, dtype_named
from tauten.core.errors import CorruptError, InputError
from tauten.formats.bits import pack, packed_bytes, unpack
from tauten.formats.integer import ZERO_KINDS, grid_values
from tauten.formats.interleaved import COLUMNS, Interleavable
from tauten.formats.masks import layout, pack_mask, pack_rows, unpack_rows
from tauten.formats.packed import SCALE_DTYPES, PackedWeight, from_spec, take_rows
from tauten.formats.specs import SparseSpec

VALUE_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_STEP_ROWS = 512  # rows that are made dense at a time, to bound the memory for their positions


@dataclass(frozen=True)
class Grid:
    """What integer codes mean, as in `IntegerWeight`."""

    bits: int
    group_size: int
    zero_kind: str

    def __post_init__(self) -> None:
        if self.bits not in range(1, 9):
            raise InputError(f"bits={self.bits}: expected an integer from 1 to 8")
        if self.group_size < 0:
            expected = "expected 0 (per channel) or a positive integer"
            raise InputError(f"group_size={self.group_size}: {expected}")
        if self.zero_kind not in ZERO_KINDS:
            raise InputError(f"zero_kind={self.zero_kind!r}: expected one of {ZERO_KINDS}")


class SparseWeight(Interleavable, PackedWeight):
    """weight = its kept value where the mask is set, exactly 0 elsewhere.

    Kept values stand row after row in the order of their columns. They are floats, or codes of an
    integer grid with scales and zeros per group of columns. Where each row starts follows from the
    mask and isn't stored.

    Buffers:
        mask: (out, bytes) uint8, as `masks.pack_rows` makes it: a bit a weight, or with pattern
            `2:4` three bits for each 4 columns.
            While interleaved a bit a weight, rows padded with zeros to multiples of 32 columns.
        values: (slots,) float16, bfloat16 or float32; codes are (packed_bytes(slots, bits),)
            uint8, each row filled up to a multiple of 8, so that it starts on a byte.
        scale: None with floats, else (out, groups) float16 or float32.
        zero: None on a symmetric grid; integer zeros are (out, packed_bytes(groups, bits)) uint8,
            float offsets as `scale`.
        starts: Only while interleaved: (out + 1,) int64, the first slot of each row, and `slots`.
    """

    kind = "sparse"
    described_by = SparseSpec
    told_by = "starts"
    mask: Tensor
    values: Tensor
    scale: Tensor | None
    zero: Tensor | None
    starts: Tensor | None

    def __init__(
        self,
        shape: tuple[int, ...],
        pattern: str,
        slots: int,
        grid: Grid | None,
        tensors: dict[str, Tensor],
    ):
        super().__init__()
        self.shape, self.pattern, self.slots, self.grid = tuple(shape), pattern, slots, grid
        self.register_buffer("mask", tensors["mask"])
        self.register_buffer("values", tensors["values"])
        self.register_buffer("scale", tensors.get("scale"))
        self.register_buffer("zero", tensors.get("zero"))
        self.register_buffer("starts", None, persistent=False)

    @property
    def interleaved(self) -> bool:
        """Whether the mask is laid out for the kernels now."""
        return self.starts is not None

    @classmethod
    def from_dense(cls, weight: Tensor, mask: Tensor) -> "SparseWeight":
        """Keep the weights where a mask is set, unrounded.

        Args:
            weight: (out, in, ...) float16, bfloat16 or float32.
            mask: As `weight`, bool, True where kept. If exactly 2 of each 4 neighbours in a row
                are, the mask takes 0.75 bits a weight instead of 1.
        Raises:
            InputError: `weight` or `mask` isn't that.
        """
        if weight.dtype not in VALUE_DTYPES:
            raise InputError(f"weight is {weight.dtype}: expected float16, bfloat16 or float32")
        shape = tuple(weight.shape)
        packed, pattern = pack_mask(mask, shape)
        values = weight.detach()[mask]
        return cls(shape, pattern, len(values), None, {"mask": packed, "values": values})

    @classmethod
    def from_codes(
        cls,
        mask: Tensor,
        bits: int,
        group_size: int,
        codes: Tensor,
        scale: Tensor,
        zero: Tensor | None,
    ) -> "SparseWeight":
        """Keep codes that a solver chose where a mask is set.

        Args:
            mask: (out, in, ...) bool, True where kept, as in `from_dense`.
            bits: 1 to 8.
            group_size: Columns a scale; 0 for the whole row.
            codes: (out, in) uint8, each below 2**bits.
            scale: (out, groups) float16 or float32.
            zero: None, (out, groups) uint8 codes of zero, or floating offsets like `scale`.
        Raises:
            InputError: An argument isn't that.
        """
        kind = "none" if zero is None else "float" if zero.is_floating_point() else "integer"
        grid, shape = Grid(bits, group_size, kind), tuple(mask.shape)
        packed, pattern = pack_mask(mask, shape)
        _check_codes(mask.flatten(1), grid, codes, scale, zero)
        kept = _kept_codes(codes, mask.flatten(1))
        tensors = {"mask": packed, "values": pack(kept, bits), "scale": scale}
        if zero is not None:
            tensors["zero"] = pack(zero, bits) if kind == "integer" else zero
        return cls(shape, pattern, len(kept), grid, tensors)

    def kept(self, rows: Tensor | slice = slice(None)) -> Tensor:
        """(rows, in) bool, True where a weight is kept."""
        pattern = "any" if self.interleaved else self.pattern
        return unpack_rows(take_rows(self.mask, rows), pattern, self.in_features)

    def row_starts(self) -> Tensor:
        """(out + 1,) int64: the first slot of each row, and the number of slots.

        Raises:
            CorruptError: The tensors aren't those described, or the mask keeps other than `slots`.
        """
        if self.starts is not None:
            return self.starts
        compiling = torch.compiler.is_compiling()  # it sees no values
        for name, twin in () if compiling else from_spec(self.spec()).named_buffers():
            buffer = self.get_buffer(name)
            if buffer.shape != twin.shape or buffer.dtype != twin.dtype:
                got, expected = (f"{tuple(t.shape)} {t.dtype}" for t in (buffer, twin))
                raise CorruptError(f"{name} of a sparse weight is {got}: expected {expected}")
        rows = torch.arange(self.out_features, device=self.mask.device)
        counts = torch.cat([self.kept(part).sum(1) for part in rows.split(_STEP_ROWS)])
        starts = _starts(counts, 1 if self.grid is None else 8)
        if compiling:
            return starts
        pairs = self.pattern == "2:4" and not bool((2 * counts == self.in_features).all())
        if pairs or int(starts[-1]) != self.slots:
            raise CorruptError(
                f"a sparse weight of {self.slots} kept values has a mask for {int(starts[-1])}; "
                "the file is damaged, make it anew"
            )
        return starts

    def check_contents(self) -> None:
        self.row_starts()

    def dequantize_rows(self, rows: Tensor | slice, dtype: torch.dtype = torch.float32) -> Tensor:
        starts, values = self.row_starts(), self.values
        if self.grid is not None:
            values = unpack(values, self.grid.bits, self.slots).float()
        index = take_rows(torch.arange(self.out_features, device=starts.device), rows)
        dense = index.new_zeros(index.shape[0], self.in_features, dtype=dtype)
        if not self.slots:
            return dense
        for part, target in zip(_steps(index), _steps(dense), strict=True):
            mask = self.kept(part)
            positions = (starts[part, None] + mask.cumsum(1) - 1).clamp_(min=0)
            levels = values[positions]  # where nothing is kept, a neighbour's
            if self.grid is not None:
                levels = self._levels(levels, part)
            target.copy_(torch.where(mask, levels, 0))
        return dense

    def _levels(self, codes: Tensor, rows: Tensor) -> Tensor:
        """Levels that codes of some rows stand for: (rows, in) float32 -> (rows, in) float32."""
        assert self.grid is not None and self.scale is not None, "codes have a grid"
        size = self.grid.group_size or self.in_features
        zero = None if self.zero is None else take_rows(self.zero, rows)
        if zero is not None and self.grid.zero_kind == "integer":
            zero = unpack(zero, self.grid.bits, self.scale.shape[1])
        return grid_values(codes, self.grid.bits, size, take_rows(self.scale, rows), zero)

    @property
    def interleaved_bytes(self) -> int:
        rows, columns = self.out_features, self.in_features
        bits, codes = layout(self.pattern, columns)
        unmasked_bytes = self.size_bytes - rows * packed_bytes(codes, bits)
        return unmasked_bytes + rows * -(-columns // COLUMNS) * COLUMNS // 8 + 8 * (rows + 1)

    def interleaved_tensors(self) -> dict[str, Tensor | None]:
        """The mask for the kernels, a bit a weight, and where the rows' values start."""
        starts, missing = self.row_starts(), -self.in_features % COLUMNS
        rows = torch.arange(self.out_features, device=self.mask.device)
        parts = [self.kept(part).to(torch.uint8) for part in rows.split(_STEP_ROWS)]
        padded = [pack(nn.functional.pad(part, (0, missing)), 1) for part in parts]
        return {"mask": torch.cat(padded), "starts": starts}

    def row_tensors(self) -> dict[str, Tensor | None]:
        """The mask as on disk."""
        packed = [pack_rows(part, self.pattern) for part in self.kept().split(_STEP_ROWS)]
        return {"mask": torch.cat(packed), "starts": None}

    def code_layouts(self) -> dict[str, tuple[int, int]]:
        layouts = {"mask": layout(self.pattern, self.in_features)}
        if self.grid is not None and self.scale is not None:
            layouts["values"] = (self.grid.bits, self.slots)
            if self.grid.zero_kind == "integer":
                layouts["zero"] = (self.grid.bits, self.scale.shape[1])
        return layouts

    def spec(self) -> dict[str, Any]:
        spec: dict[str, Any] = {"kind": self.kind, "shape": list(self.shape)}
        spec |= {"pattern": self.pattern, "slots": self.slots}
        if self.grid is None or self.scale is None:
            return spec | {"values": dtype_name(self.values.dtype)}
        return spec | {
            "values": "codes",
            "bits": self.grid.bits,
            "group_size": self.grid.group_size,
            "zero": self.grid.zero_kind,
            "scale_dtype": dtype_name(self.scale.dtype),
        }

    @classmethod
    def empty(cls, spec: dict[str, Any]) -> "SparseWeight":
        shape, pattern, slots = tuple(spec["shape"]), spec["pattern"], spec["slots"]
        rows, columns = shape[0], int(torch.Size(shape[1:]).numel())
        if pattern == "2:4" and columns % 4:
            raise InputError(f"pattern 2:4 of {columns} columns: expected a multiple of 4")
        bits, codes = layout(pattern, columns)
        width = packed_bytes(codes, bits)
        tensors = {"mask": torch.empty(rows, width, dtype=torch.uint8, device="meta")}
        if spec["values"] != "codes":
            dtype = dtype_named(spec["values"], VALUE_DTYPES)
            tensors["values"] = torch.empty(slots, dtype=dtype, device="meta")
            return cls(shape, pattern, slots, None, tensors)
        grid = Grid(spec["bits"], spec["group_size"], spec["zero"])
        dtype = dtype_named(spec["scale_dtype"], SCALE_DTYPES)
        groups = -(-columns // (grid.group_size or columns))
        length = packed_bytes(slots, grid.bits)
        tensors["values"] = torch.empty(length, dtype=torch.uint8, device="meta")
        tensors["scale"] = torch.empty(rows, groups, dtype=dtype, device="meta")
        if grid.zero_kind == "float":
            tensors["zero"] = torch.empty_like(tensors["scale"])
        elif grid.zero_kind == "integer":
            width = packed_bytes(groups, grid.bits)
            tensors["zero"] = torch.empty(rows, width, dtype=torch.uint8, device="meta")
        return cls(shape, pattern, slots, grid, tensors)


def _steps(rows: Tensor) -> tuple[Tensor, ...]:
    """A few rows at a time; a compiled program takes all, since they may be of any number."""
    return (rows,) if torch.compiler.is_compiling() else rows.split(_STEP_ROWS)


def _starts(counts: Tensor, multiple: int) -> Tensor:
    """First slot of each row and their number, if each row takes a multiple of so many slots."""
    ends = (-(-counts // multiple) * multiple).cumsum(0)
    return nn.functional.pad(ends, (1, 0))


def _kept_codes(codes: Tensor, mask: Tensor) -> Tensor:
    """(slots,) uint8: kept codes of (out, in) row by row, filled up to multiples of 8 by zeros."""
    starts = _starts(mask.sum(1), 8)
    kept = codes.new_zeros(int(starts[-1]))
    kept[(starts[:-1, None] + mask.cumsum(1) - 1)[mask]] = codes[mask]
    return kept


def _check_codes(
    mask: Tensor, grid: Grid, codes: Tensor, scale: Tensor, zero: Tensor | None
) -> None:
    """Raise InputError unless codes and their grid fit a (out, in) mask."""
    rows, columns = mask.shape
    cells = (rows, -(-columns // (grid.group_size or columns)))
    if codes.shape != mask.shape or codes.dtype != torch.uint8:
        got = f"{tuple(codes.shape)} {codes.dtype}"
        raise InputError(f"codes are {got}: expected {tuple(mask.shape)} uint8")
    if int(codes.max()) >= 2**grid.bits:
        raise InputError(f"a code is {int(codes.max())}: expected below 2**{grid.bits}")
    if scale.shape != cells or scale.dtype not in SCALE_DTYPES:
        got = f"{tuple(scale.shape)} {scale.dtype}"
        raise InputError(f"scale is {got}: expected {cells} float16 or float32")
    if zero is not None and (zero.shape != cells or zero.dtype not in (torch.uint8, scale.dtype)):
        got = f"{tuple(zero.shape)} {zero.dtype}"
        raise InputError(f"zero is {got}: expected {cells} uint8 or {scale.dtype}")
