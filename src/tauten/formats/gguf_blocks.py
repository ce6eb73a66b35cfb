"""Packed weights as the blocks of a GGUF file, byte for byte, and back."""

from typing import NamedTuple

import torch
from torch import Tensor

from tauten.core.errors import CorruptError, InputError, NotApplicableError
from tauten.formats.integer import IntegerWeight
from tauten.formats.interleaved import take_groups
from tauten.formats.superblock import SuperblockWeight, TwoLevelGrid, TwoLevelScales


class Plane(NamedTuple):
    """Some bits of all codes of a block: those of codes `stride` apart share a byte.

    Attributes:
        width: Bits of a code.
        shift: Where they stand in the code.
        stride: The first code of each byte is followed by the one this far on, and so on.
    """

    width: int
    shift: int
    stride: int


class BlockType(NamedTuple):
    """Layout of a block.

    Attributes:
        bits, group_size, columns, scale_bits, zero_kind: The grid, as in `TwoLevelGrid`, where
            columns is the superblock; with scale_bits 0 a scale is a float, and block and group
            are the same.
        fields: Parts in their order: planes of the codes; `scale` and `zero`, a float16 each;
            `scales`, the codes of scales and offsets.
        scale_planes: Of the codes of the scales, and then the offsets; empty for those of
            Q4_K and Q5_K, which aren't laid out in planes.
    """

    bits: int
    group_size: int
    columns: int
    scale_bits: int
    zero_kind: str
    fields: tuple["str | Plane", ...]
    scale_planes: tuple[Plane, ...] = ()

    @property
    def grid(self) -> TwoLevelGrid:
        """The grid of a type with two levels of scales."""
        size = (self.group_size, self.columns, self.scale_bits)
        return TwoLevelGrid(self.bits, *size, self.zero_kind)


_HALVES, _LOW, _QUARTERS = Plane(4, 0, 16), Plane(4, 0, 32), Plane(2, 0, 32)
_FIFTH, _THIRD = Plane(1, 4, 32), Plane(1, 2, 32)
_SIX_BITS = (Plane(4, 0, 8), Plane(2, 4, 4))
BLOCK_TYPES = {
    "Q4_0": BlockType(4, 32, 32, 0, "none", ("scale", _HALVES)),
    "Q4_1": BlockType(4, 32, 32, 0, "float", ("scale", "zero", _HALVES)),
    "Q5_0": BlockType(5, 32, 32, 0, "none", ("scale", Plane(1, 4, 1), _HALVES)),
    "Q5_1": BlockType(5, 32, 32, 0, "float", ("scale", "zero", Plane(1, 4, 1), _HALVES)),
    "Q8_0": BlockType(8, 32, 32, 0, "none", ("scale", Plane(8, 0, 32))),
    "Q2_K": BlockType(
        2, 16, 256, 4, "float", ("scales", _QUARTERS, "scale", "zero"), (Plane(4, 0, 16),)
    ),
    "Q3_K": BlockType(3, 16, 256, 6, "none", (_THIRD, _QUARTERS, "scales", "scale"), _SIX_BITS),
    "Q4_K": BlockType(4, 32, 256, 6, "float", ("scale", "zero", "scales", _LOW)),
    "Q5_K": BlockType(5, 32, 256, 6, "float", ("scale", "zero", "scales", _FIFTH, _LOW)),
    "Q6_K": BlockType(
        6,
        16,
        256,
        8,
        "none",
        (Plane(4, 0, 64), Plane(2, 4, 32), "scales", "scale"),
        (Plane(8, 0, 16),),
    ),
}


def gguf_type(weight: IntegerWeight) -> str:
    """Name of the GGUF type whose blocks hold a weight exactly.

    Raises:
        NotApplicableError: None does, or its rows aren't whole blocks.
    """
    if isinstance(weight, SuperblockWeight):
        grid, scale = weight.grid, weight.super_scale
        meaning = (grid.bits, grid.group_size, grid.superblock, grid.scale_bits, grid.zero_kind)
    else:
        scale = weight.scale
        meaning = (weight.bits, weight.group_size, weight.group_size, 0, weight.zero_kind)
    for name, block in BLOCK_TYPES.items():
        if block[:5] == meaning and scale.dtype is torch.float16:
            if weight.in_features % block.columns:
                raise NotApplicableError(
                    f"{name} needs rows of a multiple of {block.columns} columns, not "
                    f"{weight.in_features}: choose a grid of one level, such as Q4_0's"
                )
            return name
    raise NotApplicableError(
        f"no GGUF type has the grid (bits, group_size, superblock, scale_bits, zero) = {meaning} "
        f"with {scale.dtype} scales; GGUF has {', '.join(BLOCK_TYPES)}"
    )


def to_gguf_bytes(weight: IntegerWeight) -> Tensor:
    """The blocks of a weight, (out, bytes of a row) uint8, of the type `gguf_type` names.

    Raises:
        NotApplicableError: No type holds this weight exactly.
    """
    block = BLOCK_TYPES[gguf_type(weight)]
    blocks = weight.out_features * weight.in_features // block.columns
    scales = _scales(weight)
    parts = {"scale": _half_bytes(scales.super_scale)}
    if scales.super_zero is not None:
        parts["zero"] = _half_bytes(scales.super_zero)
    if block.scale_bits:
        columns = [scales.scale_codes.reshape(blocks, -1)]
        if scales.zero_codes is not None:
            columns.append(scales.zero_codes.reshape(blocks, -1))
        parts["scales"] = _pack_scales(torch.cat(columns, 1), block)
    codes = _flipped(weight.integer_codes().reshape(blocks, -1), block.bits)
    fields = [_fold(codes, f) if isinstance(f, Plane) else parts[f] for f in block.fields]
    return torch.cat(fields, 1).view(weight.out_features, -1)


def from_gguf_bytes(name: str, data: Tensor, shape: tuple[int, ...]) -> IntegerWeight:
    """Undo `to_gguf_bytes`.

    Args:
        name: Of the type.
        data: (out, bytes of a row) uint8.
        shape: Of the weight, (out, in, ...).
    Raises:
        InputError: The type is unknown.
        CorruptError: The data isn't what such a weight takes.
    """
    if name not in BLOCK_TYPES:
        raise InputError(f"GGUF type {name!r}: expected one of {', '.join(BLOCK_TYPES)}")
    block, columns = BLOCK_TYPES[name], int(torch.Size(shape[1:]).numel())
    sizes = [_size(field, block) for field in block.fields]
    expected = (shape[0], columns // block.columns * sum(sizes))
    if columns % block.columns or tuple(data.shape) != expected or data.dtype != torch.uint8:
        got = f"{tuple(data.shape)} {data.dtype}"
        raise CorruptError(f"{name} data of a {shape} weight is {got}: expected {expected} uint8")
    split = data.reshape(-1, sum(sizes)).split(sizes, 1)
    fields = list(zip(block.fields, split, strict=True))
    codes = _join([(field, part) for field, part in fields if isinstance(field, Plane)])
    parts = {field: part for field, part in fields if isinstance(field, str)}
    return _weight(shape, block, _flipped(codes, block.bits).view(shape[0], columns), parts)


def _weight(
    shape: tuple[int, ...], block: BlockType, codes: Tensor, parts: dict[str, Tensor]
) -> IntegerWeight:
    """A weight from its (out, in) codes and the other fields of its blocks, (blocks, bytes)."""
    rows = shape[0]
    halves = {
        key: part.contiguous().view(torch.float16).view(rows, -1)
        for key, part in parts.items()
        if key != "scales"
    }
    if not block.scale_bits:
        scale, zero = halves["scale"], halves.get("zero")
        return IntegerWeight.from_codes(shape, block.bits, block.group_size, codes, scale, zero)
    numbers = _unpack_scales(parts["scales"], block).split(block.columns // block.group_size, 1)
    scales = TwoLevelScales(numbers[0].reshape(rows, -1), halves["scale"])
    if block.zero_kind == "float":
        zero_codes = numbers[1].reshape(rows, -1)
        scales = scales._replace(zero_codes=zero_codes, super_zero=halves["zero"])
    return SuperblockWeight.from_scales(shape, block.grid, codes, scales)


def _scales(weight: IntegerWeight) -> TwoLevelScales:
    """The floats of a weight as super-scales, and codes if there are two levels."""
    if isinstance(weight, SuperblockWeight):
        return weight.scales()
    every, count = slice(None), weight.out_features
    zero = None if weight.zero is None else take_groups(weight.zero, every, count)
    scale = take_groups(weight.scale, every, count)
    return TwoLevelScales(scale.new_empty(0), scale, None, zero)


def _half_bytes(values: Tensor) -> Tensor:
    """(out, blocks of a row) float16 -> (blocks, 2) uint8."""
    return values.contiguous().view(torch.uint8).view(-1, 2)


def _flipped(codes: Tensor, bits: int) -> Tensor:
    """8-bit codes are two's complement in a file; the centre is added here."""
    return codes ^ 0x80 if bits == 8 else codes


def _size(field: "str | Plane", block: BlockType) -> int:
    """Bytes that a part of a block takes."""
    if isinstance(field, Plane):
        return block.columns * field.width // 8
    if field != "scales":
        return 2
    numbers = block.columns // block.group_size * (2 if block.zero_kind == "float" else 1)
    return numbers * block.scale_bits // 8


def _fold(codes: Tensor, plane: Plane) -> Tensor:
    """A plane of (blocks, n) codes: (blocks, n * width / 8) uint8."""
    slots = 8 // plane.width
    part = (codes >> plane.shift) & (2**plane.width - 1)
    cells = part.view(len(codes), -1, slots, plane.stride)
    shifted = [cells[:, :, slot] << (slot * plane.width) for slot in range(slots)]
    return torch.stack(shifted).sum(0, dtype=torch.uint8).flatten(1)


def _unfold(packed: Tensor, plane: Plane) -> Tensor:
    """Undo `_fold`; the bits stand where they belong in the codes, the others are 0."""
    cells = packed.reshape(len(packed), -1, plane.stride)
    slots = [cells >> (slot * plane.width) for slot in range(8 // plane.width)]
    mask = 2**plane.width - 1
    return torch.stack(slots, 2).flatten(1).bitwise_and_(mask).bitwise_left_shift_(plane.shift)


def _join(planes: list[tuple[Plane, Tensor]]) -> Tensor:
    """Codes (blocks, n) uint8 from all of their planes."""
    return torch.stack([_unfold(packed, plane) for plane, packed in planes]).sum(
        0, dtype=torch.uint8
    )


def _pack_scales(codes: Tensor, block: BlockType) -> Tensor:
    """(blocks, numbers) uint8 -> (blocks, bytes)."""
    if block.scale_planes:
        codes = _flipped(codes, block.scale_bits)
        return torch.cat([_fold(codes, plane) for plane in block.scale_planes], 1)
    # Scales a and offsets b of 4 groups stand in 6 bits of a byte each; above them, the 2 high bits
    # of the scales c and offsets d of the other 4, whose low bits follow.
    a, c, b, d = codes.split(4, 1)
    return torch.cat([a | c >> 4 << 6, b | d >> 4 << 6, c & 15 | (d & 15) << 4], 1)


def _unpack_scales(data: Tensor, block: BlockType) -> Tensor:
    """Undo `_pack_scales`."""
    if block.scale_planes:
        sizes = [data.shape[1] * plane.width // block.scale_bits for plane in block.scale_planes]
        parts = zip(block.scale_planes, data.split(sizes, 1), strict=True)
        return _flipped(_join(list(parts)), block.scale_bits)
    first, second, low = data.split(4, 1)
    c, d = low & 15 | first >> 6 << 4, low >> 4 | second >> 6 << 4
    return torch.cat([first & 63, c, second & 63, d], 1)
