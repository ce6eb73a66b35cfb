"""Masks of pruned weights as bits, packed by `bits.pack`.

With pattern `any` a bit a weight, 1 where it is kept. With `2:4`, where exactly two of each four
neighbours in a row are kept, three bits for the four: the number of their pair in `_PAIRS`.
"""

import torch
from torch import Tensor

from tauten.core.errors import InputError
from tauten.formats.bits import pack, unpack

_PAIRS = (0b0011, 0b0101, 0b0110, 0b1001, 0b1010, 0b1100)  # which 2 of 4 columns are kept


def layout(pattern: str, columns: int) -> tuple[int, int]:
    """Bits of a code of a mask, and codes of a row."""
    return (3, columns // 4) if pattern == "2:4" else (1, columns)


def pack_mask(mask: Tensor, shape: tuple[int, ...]) -> tuple[Tensor, str]:
    """The packed rows of a mask and its pattern, which is `2:4` wherever that holds.

    Args:
        mask: (out, in, ...) bool, True where a weight is kept.
        shape: Of the weight.
    Raises:
        InputError: It isn't that.
    """
    if mask.dtype != torch.bool or tuple(mask.shape) != shape or len(shape) < 2 or 0 in shape:
        got = f"{tuple(mask.shape)} {mask.dtype}"
        raise InputError(f"mask is {got}: expected (out, in, ...) bool, shaped as the weight")
    mask = mask.flatten(1)
    halves = mask.shape[1] % 4 == 0 and bool((mask.unflatten(1, (-1, 4)).sum(2) == 2).all())
    pattern = "2:4" if halves else "any"
    return pack_rows(mask, pattern), pattern


def pack_rows(mask: Tensor, pattern: str) -> Tensor:
    """Rows of a mask, (rows, in) bool, as uint8: (rows, packed_bytes of their `layout`)."""
    bits = mask.to(torch.uint8)
    if pattern == "any":
        return pack(bits, 1)
    number_of = torch.zeros(16, dtype=torch.uint8, device=mask.device)
    number_of[list(_PAIRS)] = torch.arange(len(_PAIRS), dtype=torch.uint8, device=mask.device)
    fours = pack(bits.unflatten(1, (-1, 4)), 1).squeeze(2)  # (rows, in / 4), 4 bits each
    return pack(number_of[fours.int()], 3)


def unpack_rows(packed: Tensor, pattern: str, columns: int) -> Tensor:
    """(rows, columns) bool of what `pack_rows` made."""
    if pattern == "any":
        return unpack(packed, 1, columns).bool()
    pairs = torch.tensor([*_PAIRS, 0, 0], dtype=torch.uint8, device=packed.device)
    found = pairs[unpack(packed, 3, columns // 4).int()]  # (rows, in / 4) of 4 bits
    return unpack(found[..., None], 1, 4).flatten(1).bool()
