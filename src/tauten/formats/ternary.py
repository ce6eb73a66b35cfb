"""Weights that are -1, 0 or 1 times a scale: five of them fit in a byte, 1.6 bits each."""

from typing import Any

import torch
from torch import Tensor

from tauten.core.errors import CorruptError, InputError
from tauten.formats.integer import IntegerWeight
from tauten.formats.packed import take_rows
from tauten.formats.specs import TernarySpec

TRITS = 5  # 3**5 = 243 of the 256 values of a byte
BITS = 2  # of a code in memory, interleaved


class TernaryWeight(IntegerWeight):
    """weight = scale * sign, where a sign is -1, 0 or 1.

    To the kernels it is a symmetric integer weight of 2 bits with the codes 1, 2 and 3; by rows,
    as on disk, those stand more densely than 2 bits would.

    Buffers:
        codes: (out, ceil(in / 5)) uint8 by rows: code - 1 of five columns, the first one times 1,
            the next ones times 3, 9, 27 and 81. Interleaved as codes of 2 bits.
        scale: (out, groups) float16 or float32.
    """

    kind = "ternary"
    described_by = TernarySpec

    @property
    def label(self) -> str:
        return self.kind

    @classmethod
    def from_signs(
        cls, shape: tuple[int, ...], group_size: int, signs: Tensor, scale: Tensor
    ) -> "TernaryWeight":
        """Pack signs (out, in) of -1, 0 and 1; scale (out, groups) float16 or float32."""
        made = cls.from_codes(shape, BITS, group_size, (signs + 2).to(torch.uint8), scale, None)
        assert isinstance(made, TernaryWeight)
        return made

    @classmethod
    def from_codes(
        cls,
        shape: tuple[int, ...],
        bits: int,
        group_size: int,
        codes: Tensor,
        scale: Tensor,
        zero: Tensor | None,
    ) -> IntegerWeight:
        if bits != BITS or zero is not None or bool((codes - 1 > 2).any()):
            raise InputError("a ternary weight has codes of 2 bits, 1, 2 or 3, and no zero")
        return super().from_codes(shape, bits, group_size, codes, scale, zero)

    @classmethod
    def pack_codes(cls, codes: Tensor, bits: int) -> Tensor:
        return pack_trits(codes - 1)

    def integer_codes(self, rows: Tensor | slice = slice(None)) -> Tensor:
        """(rows, in) uint8 codes: 1, 2 or 3.

        Raises:
            CorruptError: A byte stands for no five trits.
        """
        if self.interleaved:
            return super().integer_codes(rows)
        return unpack_trits(take_rows(self.codes, rows), self.in_features) + 1

    def check_contents(self) -> None:
        if not self.interleaved:
            _check_trits(self.codes)

    def code_layouts(self) -> dict[str, tuple[int, int]]:
        return {"codes": (8, trit_bytes(self.in_features))}

    def interleaved_tensors(self) -> dict[str, Tensor]:
        grid = (self.integer_codes(), self.scale, None)
        twin = IntegerWeight.from_codes(self.shape, BITS, self.group_size, *grid)
        return twin.interleaved_tensors()

    @classmethod
    def empty(cls, spec: dict[str, Any]) -> IntegerWeight:
        twin = super().empty(spec)
        size = (twin.out_features, trit_bytes(twin.in_features))
        twin.codes = torch.empty(size, dtype=torch.uint8, device="meta")
        return twin


def trit_bytes(count: int) -> int:
    """Bytes that one row of `count` trits takes."""
    return -(-count // TRITS)


def pack_trits(trits: Tensor) -> Tensor:
    """(..., n) uint8 of 0, 1 and 2 -> (..., trit_bytes(n)) uint8."""
    padded = torch.nn.functional.pad(trits, (0, -trits.shape[-1] % TRITS))
    cells = padded.unflatten(-1, (-1, TRITS)) * _powers(trits.device)
    packed: Tensor = cells.sum(-1, dtype=torch.uint8)
    return packed


def unpack_trits(packed: Tensor, count: int) -> Tensor:
    """Undo `pack_trits` of `count` trits a row.

    Raises:
        CorruptError: A byte is above 242.
    """
    if not torch.compiler.is_compiling():  # it sees no values
        _check_trits(packed)
    trits: Tensor = packed[..., None] // _powers(packed.device) % 3
    return trits.flatten(-2)[..., :count]


def _check_trits(packed: Tensor) -> None:
    if packed.numel() and int(packed.max()) >= 3**TRITS:
        raise CorruptError(f"a byte of trits is {int(packed.max())}: five of them make at most 242")


def _powers(device: torch.device) -> Tensor:
    return torch.tensor([3**i for i in range(TRITS)], dtype=torch.uint8, device=device)
