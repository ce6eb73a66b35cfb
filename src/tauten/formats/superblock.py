"""Integer weights whose scales are integers too, with a floating super-scale for many of them."""

from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tauten.core.dtypes import dtype_name, dtype_named
from tauten.core.errors import InputError
from tauten.formats.bits import pack, packed_bytes, unpack
from tauten.formats.integer import IntegerWeight, center, fits_float16, grid_values
from tauten.formats.interleaved import interleaved_code_bytes, padded_rows, take_codes
from tauten.formats.packed import SCALE_DTYPES, PackedWeight, take_rows
from tauten.formats.specs import SuperblockSpec


class TwoLevelScales(NamedTuple):
    """The scales of a matrix; what they stand for is up to a `TwoLevelGrid`.

    Attributes:
        scale_codes: (out, groups) uint8.
        super_scale: (out, superblocks) float16 or float32.
        zero_codes: As `scale_codes`; None on a symmetric grid.
        super_zero: As `super_scale`; None on a symmetric grid.
    """

    scale_codes: Tensor
    super_scale: Tensor
    zero_codes: Tensor | None = None
    super_zero: Tensor | None = None


@dataclass(frozen=True)
class TwoLevelGrid:
    """What codes and two levels of scales stand for; llama.cpp's K-quants are five of these grids.

    A group with an offset takes the levels scale * code + zero, where
    scale = super_scale * scale_code and zero = -super_zero * zero_code. A symmetric one takes
    scale * (code - center(bits)), with a scale of either sign:
    super_scale * (scale_code - center(scale_bits)).

    Attributes:
        bits: Of a code, 1 to 8.
        group_size: Columns that share a scale; the last group of a row may be shorter.
        superblock: Columns that share a super-scale, a multiple of `group_size`; 0 for the whole
            row. The last superblock of a row may be shorter.
        scale_bits: Of a scale code, and of a zero code, 2 to 8.
        zero_kind: `float` (groups have an offset) or `none` (symmetric).
    """

    bits: int
    group_size: int
    superblock: int
    scale_bits: int
    zero_kind: str

    def __post_init__(self) -> None:
        counts = (self.bits, self.group_size, self.superblock, self.scale_bits)
        if not all(isinstance(count, int) for count in counts):
            raise InputError(f"{self}: expected integers")
        if self.bits not in range(1, 9):
            raise InputError(f"bits={self.bits}: expected an integer from 1 to 8")
        if self.group_size < 1:
            raise InputError(f"group_size={self.group_size}: expected a positive integer")
        if self.superblock < 0 or self.superblock % self.group_size:
            expected = f"0 (the whole row) or a multiple of group_size={self.group_size}"
            raise InputError(f"superblock={self.superblock}: expected {expected}")
        if self.scale_bits not in range(2, 9):
            raise InputError(f"scale_bits={self.scale_bits}: expected an integer from 2 to 8")
        if self.zero_kind not in ("none", "float"):
            raise InputError(f"zero_kind={self.zero_kind!r}: expected none or float")

    def groups(self, columns: int) -> int:
        """Groups in a row of so many columns."""
        return -(-columns // self.group_size)

    def superblocks(self, columns: int) -> int:
        """Superblocks in a row of so many columns."""
        return -(-columns // (self.superblock or columns))

    def spread(self, values: Tensor, groups: int) -> Tensor:
        """What belongs to superblocks, for each group: (rows, superblocks) -> (rows, groups)."""
        if not self.superblock:
            return values.expand(-1, groups)
        return values.repeat_interleave(self.superblock // self.group_size, 1)[:, :groups]

    def expand(self, scales: TwoLevelScales) -> tuple[Tensor, Tensor | None]:
        """Scale and offset of each group, (out, groups) float32, exact; None if symmetric."""
        groups = scales.scale_codes.shape[1]
        factor = scales.scale_codes.float()
        if scales.zero_codes is None or scales.super_zero is None:
            factor -= center(self.scale_bits)
        scale = factor * self.spread(scales.super_scale.float(), groups)
        if scales.zero_codes is None or scales.super_zero is None:
            return scale, None
        return scale, -scales.zero_codes.float() * self.spread(scales.super_zero.float(), groups)


def two_level_values(codes: Tensor, grid: TwoLevelGrid, scales: TwoLevelScales) -> Tensor:
    """The levels that codes stand for: (out, in) uint8 or floating -> (out, in) float32."""
    return grid_values(codes.float(), grid.bits, grid.group_size, *grid.expand(scales))


class SuperblockWeight(IntegerWeight):
    """An integer weight that stores its scales and offsets as a `TwoLevelGrid` says.

    `scale` and `zero` are computed: on each access by rows, once when interleaved, so that every
    kernel for integer weights runs it. Those take groups of multiples of 32 columns;
    groups of 16, as some K-quants have them, run in plain torch.

    Buffers:
        codes: As in `IntegerWeight`.
        scale_codes: (out, packed_bytes(groups, scale_bits)) uint8.
        super_scale: (out, superblocks) float16, or float32 where float16 would lose its range.
        zero_codes, super_zero: As those; absent on a symmetric grid.
        expanded_scale, expanded_zero: Only while interleaved: (blocks, groups, 16) float16, or
            float32 where float16 would lose their range.
    """

    kind = "superblock"
    described_by = SuperblockSpec
    scale_codes: Tensor
    super_scale: Tensor
    zero_codes: Tensor | None
    super_zero: Tensor | None
    expanded_scale: Tensor | None
    expanded_zero: Tensor | None

    def __init__(self, shape: tuple[int, ...], grid: TwoLevelGrid, tensors: dict[str, Tensor]):
        PackedWeight.__init__(self)  # not IntegerWeight's, which would store scale and zero
        self.shape, self.grid = tuple(shape), grid
        self.bits, self.group_size, self.zero_kind = grid.bits, grid.group_size, grid.zero_kind
        for name in ("codes", "scale_codes", "super_scale", "zero_codes", "super_zero"):
            self.register_buffer(name, tensors.get(name))
        self.register_buffer("expanded_scale", None, persistent=False)
        self.register_buffer("expanded_zero", None, persistent=False)

    @classmethod
    def from_scales(
        cls, shape: tuple[int, ...], grid: TwoLevelGrid, codes: Tensor, scales: TwoLevelScales
    ) -> "SuperblockWeight":
        """Pack codes (out, in) uint8 that a solver chose, and their scales."""
        packed = pack(codes, grid.bits)
        tensors = {"codes": packed ^ 0x80 if grid.bits == 8 else packed}
        tensors["scale_codes"] = pack(scales.scale_codes, grid.scale_bits)
        tensors["super_scale"] = scales.super_scale
        if scales.zero_codes is not None and scales.super_zero is not None:
            tensors["zero_codes"] = pack(scales.zero_codes, grid.scale_bits)
            tensors["super_zero"] = scales.super_zero
        return cls(shape, grid, tensors)

    def scales(self, rows: Tensor | slice = slice(None)) -> TwoLevelScales:
        """The scales of some rows as they are stored, codes unpacked."""
        width, groups = self.grid.scale_bits, self.groups
        codes = unpack(take_rows(self.scale_codes, rows), width, groups)
        steps = take_rows(self.super_scale, rows)
        if self.zero_codes is None or self.super_zero is None:
            return TwoLevelScales(codes, steps)
        zero_codes = unpack(take_rows(self.zero_codes, rows), width, groups)
        return TwoLevelScales(codes, steps, zero_codes, take_rows(self.super_zero, rows))

    @property
    def scale(self) -> Tensor:  # type: ignore[override]
        """(out, groups) float32; interleaved like the codes."""
        if self.interleaved and self.expanded_scale is not None:
            return self.expanded_scale
        return self.grid.expand(self.scales())[0]

    @property
    def zero(self) -> Tensor | None:  # type: ignore[override]
        """As `scale`; None on a symmetric grid."""
        return self.expanded_zero if self.interleaved else self.grid.expand(self.scales())[1]

    def dequantize_rows(self, rows: Tensor | slice, dtype: torch.dtype = torch.float32) -> Tensor:
        codes = self.integer_codes(rows)
        return two_level_values(codes, self.grid, self.scales(rows)).to(dtype)

    @property
    def interleaved_bytes(self) -> int:
        """With expanded scales of float16, unless it lost the range of those of superblocks."""
        rows, columns = padded_rows(self.out_features), self.in_features
        stored_bytes = self.out_features * packed_bytes(columns, self.bits)
        kept_bytes = self.size_bytes - stored_bytes
        grids = 1 if self.zero_kind == "none" else 2
        expanded_bytes = grids * rows * self.groups * self.super_scale.itemsize
        return interleaved_code_bytes(rows, columns, self.bits) + expanded_bytes + kept_bytes

    def interleaved_tensors(self) -> dict[str, Tensor]:
        """Codes for the kernels, and the scales and offsets expanded.

        They are rounded to float16 where its range keeps them all, which moves a weight by less
        than a hundredth of a step and reads half as many bytes.
        """
        tensors = super().interleaved_tensors()
        codes, factors = tensors.pop("codes"), tensors
        if all(bool(fits_float16(factor).all()) for factor in factors.values()):
            factors = {name: factor.half() for name, factor in factors.items()}
        return {"codes": codes} | {f"expanded_{name}": t for name, t in factors.items()}

    def row_tensors(self) -> dict[str, Tensor | None]:  # type: ignore[override]
        """The codes as on disk."""
        size = (self.out_features, self.in_features)
        codes = take_codes(self.codes, slice(None), self.bits, size)
        return {"codes": pack(codes, self.bits), "expanded_scale": None, "expanded_zero": None}

    def narrow(self, dim: int, start: int, length: int) -> "SuperblockWeight":
        shape, rows, columns = self._narrowed(dim, start, length)
        unit = self.grid.superblock or self.group_size
        if columns.start % unit or (columns.stop % unit and columns.stop != self.in_features):
            raise InputError(
                f"columns {columns.start} to {columns.stop} cut a superblock: expected multiples "
                f"of {unit}; deal columns out in units of it (unit={unit})"
            )
        codes = self.integer_codes(rows)[:, columns]
        groups, blocks = (
            slice(columns.start // size, -(-columns.stop // size))
            for size in (self.group_size, self.grid.superblock or self.in_features)
        )
        scale_codes, super_scale, zero_codes, super_zero = self.scales(rows)
        kept = TwoLevelScales(scale_codes[:, groups], super_scale[:, blocks].clone())
        if zero_codes is not None and super_zero is not None:
            kept = TwoLevelScales(*kept[:2], zero_codes[:, groups], super_zero[:, blocks].clone())
        return SuperblockWeight.from_scales(shape, self.grid, codes, kept)

    def spec(self) -> dict[str, Any]:
        scale_dtype = dtype_name(self.super_scale.dtype)
        described = {"kind": self.kind, "shape": list(self.shape), "scale_dtype": scale_dtype}
        return described | asdict(self.grid)

    @classmethod
    def empty(cls, spec: dict[str, Any]) -> "SuperblockWeight":
        shape, grid = tuple(spec["shape"]), TwoLevelGrid(**{k: spec[k] for k in _GRID_FIELDS})
        rows, columns = shape[0], int(torch.Size(shape[1:]).numel())

        def codes(count: int, bits: int) -> Tensor:
            return torch.empty(rows, packed_bytes(count, bits), dtype=torch.uint8, device="meta")

        dtype = dtype_named(spec["scale_dtype"], SCALE_DTYPES)
        superblocks = grid.superblocks(columns)
        tensors = {"codes": codes(columns, grid.bits)}
        for name in ("scale", "zero") if grid.zero_kind == "float" else ("scale",):
            tensors[f"{name}_codes"] = codes(grid.groups(columns), grid.scale_bits)
            tensors[f"super_{name}"] = torch.empty(rows, superblocks, dtype=dtype, device="meta")
        return cls(shape, grid, tensors)


_GRID_FIELDS = tuple(TwoLevelGrid.__dataclass_fields__)
