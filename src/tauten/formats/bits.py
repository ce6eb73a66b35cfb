"""Dense packing of small unsigned codes.

A code of b bits is cut into planes whose widths are powers of two (3 = 2 + 1, 5 = 4 + 1,
7 = 4 + 2 + 1), so no code straddles two bytes and unpacking is a few shifts, on any device.
Within a plane the code with the lower index sits in the lower bits of a byte. The planes of one
row stand one after the other, widest (and least significant) first; each is padded to whole bytes.
"""

import torch
from torch import Tensor


def planes(bits: int) -> tuple[int, ...]:
    """Widths of the planes of a code, widest first: planes(7) == (4, 2, 1)."""
    return tuple(width for width in (8, 4, 2, 1) if bits & width)


def packed_bytes(count: int, bits: int) -> int:
    """Bytes that one row of `count` codes takes."""
    return sum(-(-count * width // 8) for width in planes(bits))


def byte_ranges(bits: int, count: int, start: int, stop: int) -> list[slice]:
    """Where some codes of a packed row stand: the bytes of each plane.

    Args:
        bits: 1 to 8.
        count: Codes in the row.
        start: First code; a multiple of 8, so that it starts a byte of each plane.
        stop: Behind the last code.
    """
    ranges, base = [], 0
    for width in planes(bits):
        ranges.append(slice(base + start * width // 8, base + packed_bytes(stop, width)))
        base += packed_bytes(count, width)
    return ranges


def pack(codes: Tensor, bits: int) -> Tensor:
    """Pack codes along the last dimension.

    Args:
        codes: (..., n) uint8, each below 2**bits.
        bits: 1 to 8.
    Returns:
        (..., packed_bytes(n, bits)) uint8.
    """
    parts, shift = [], 0
    for width in planes(bits):
        plane = (codes >> shift) & (2**width - 1)
        parts.append(_pack_plane(plane, width))
        shift += width
    return torch.cat(parts, dim=-1) if len(parts) > 1 else parts[0]


def unpack(packed: Tensor, bits: int, count: int) -> Tensor:
    """Undo `pack`.

    Args:
        packed: (..., packed_bytes(count, bits)) uint8.
        bits: 1 to 8.
        count: Codes in a row.
    Returns:
        (..., count) uint8.
    """
    codes, start, shift = None, 0, 0
    for width in planes(bits):
        length = packed_bytes(count, width)
        plane = _unpack_plane(packed[..., start : start + length], width)[..., :count]
        codes = plane if codes is None else codes | (plane << shift)
        start, shift = start + length, shift + width
    assert codes is not None, "bits is at least 1"
    return codes


def _pack_plane(plane: Tensor, width: int) -> Tensor:
    per_byte = 8 // width
    if per_byte == 1:
        return plane.contiguous()
    missing = -plane.shape[-1] % per_byte
    plane = torch.nn.functional.pad(plane, (0, missing))
    plane = plane.unflatten(-1, (-1, per_byte))  # (..., bytes, per_byte)
    packed = plane[..., 0].clone()
    for slot in range(1, per_byte):
        packed |= plane[..., slot] << (slot * width)
    return packed


def _unpack_plane(packed: Tensor, width: int) -> Tensor:
    per_byte = 8 // width
    if per_byte == 1:
        return packed
    mask = 2**width - 1
    slots = [(packed >> (slot * width)) & mask for slot in range(per_byte)]
    return torch.stack(slots, dim=-1).flatten(-2)  # (..., bytes * per_byte)
