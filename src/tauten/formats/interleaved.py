"""The layout that vector kernels read: blocks of 16 rows, chunks of 32 columns.

A chunk is 8 quads of 4 columns. One vector of 64 bytes holds a quad of 16 rows, so that a product
of 4 columns by 16 rows is one instruction. The codes of the 8 quads are packed over each other by
`bits.pack`: byte j of a chunk's vectors packs the codes of row j // 4, columns j % 4 of all quads.
Rows and columns that fill up the last block and chunk are zeros. What belongs to a row and group
is interleaved alike. The layout on disk is by rows; this one exists in memory only.
"""

import threading
from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from tauten.formats.bits import pack, unpack
from tauten.formats.packed import take_rows

ROWS = 16
COLUMNS = 32
_STEP_ROWS = 1024  # rows that are converted at a time, to bound the memory for unpacked codes
_changing = threading.Lock()  # threads may meet in the first call of a layer


def interleave_codes(packed: Tensor, bits: int, columns: int) -> Tensor:
    """(rows, packed_bytes(columns, bits)) uint8 -> (blocks, chunks, bits, 64) uint8."""
    parts = []
    for part in torch.split(packed, _STEP_ROWS):
        codes = unpack(part, bits, columns)
        missing = (0, -columns % COLUMNS, 0, -len(part) % ROWS)
        codes = nn.functional.pad(codes, missing).view(-1, ROWS, -(-columns // COLUMNS), 8, 4)
        vectors = pack(codes.permute(0, 2, 1, 4, 3), bits)  # (blocks, chunks, 16, 4, bits)
        parts.append(vectors.flatten(2, 3).transpose(2, 3).contiguous())
    return torch.cat(parts)


def interleave_rows(matrix: Tensor) -> Tensor:
    """(rows, groups) -> (blocks, groups, 16)."""
    matrix = nn.functional.pad(matrix, (0, 0, 0, -len(matrix) % ROWS))
    return matrix.view(-1, ROWS, matrix.shape[1]).transpose(1, 2).contiguous()


def take_codes(codes: Tensor, rows: Tensor | slice, bits: int, shape: tuple[int, int]) -> Tensor:
    """Codes of some rows in either layout, (len(rows), columns) uint8.

    Args:
        codes: (rows, bytes) by rows or (blocks, chunks, bits, 64) interleaved, uint8.
        rows: Which; a negative or too large index raises IndexError.
        bits: 1 to 8.
        shape: Rows and columns of the whole matrix.
    """
    if codes.dim() == 2:
        return unpack(take_rows(codes, rows), bits, shape[1])
    index = take_rows(torch.arange(shape[0], device=codes.device), rows)
    vectors = codes.view(*codes.shape[:3], ROWS, 4)[index // ROWS, :, :, index % ROWS]
    quads = unpack(vectors.transpose(2, 3), bits, 8)  # (rows, chunks, 4, 8)
    return quads.transpose(2, 3).flatten(1)[:, : shape[1]]


def take_groups(values: Tensor, rows: Tensor | slice, count: int) -> Tensor:
    """Some of `count` rows, (len(rows), groups), of (rows, groups) or (blocks, groups, 16)."""
    if values.dim() == 2:
        return take_rows(values, rows)
    index = take_rows(torch.arange(count, device=values.device), rows)
    return values[index // ROWS, :, index % ROWS]


def padded_rows(rows: int) -> int:
    """Rows of whole blocks that hold so many."""
    return -(-rows // ROWS) * ROWS


def interleaved_code_bytes(rows: int, columns: int, bits: int) -> int:
    """Bytes of the codes of a matrix, interleaved."""
    return padded_rows(rows) * -(-columns // COLUMNS) * COLUMNS * bits // 8


class Interleavable(nn.Module):
    """A packed weight whose tensors stand by rows or interleaved; its values don't change.

    Whatever the layout in memory, `state_dict` gives tensors by rows and takes them. The change to
    the kernels' layout is safe among threads of which each calls `interleave` before it reads.

    Attributes:
        told_by: The tensor that tells the layout; it changes last.
    """

    told_by: ClassVar[str] = "codes"
    codes: Tensor
    spec: Callable[[], dict[str, Any]]
    empty: Callable[[dict[str, Any]], nn.Module]

    @property
    def interleaved(self) -> bool:
        """Whether the tensors are interleaved now."""
        return self.codes.dim() == 4

    @property
    @abstractmethod
    def interleaved_bytes(self) -> int:
        """Bytes of the tensors that an interleaved twin holds; told without making them."""

    @abstractmethod
    def interleaved_tensors(self) -> Mapping[str, Tensor | None]:
        """Tensors that an interleaved twin holds, computed from those by rows."""

    @abstractmethod
    def row_tensors(self) -> Mapping[str, Tensor | None]:
        """Tensors that a twin by rows holds, computed from the interleaved ones."""

    def interleave(self) -> None:
        """Change to the layout of the kernels, in place; done when it returns, in any thread."""
        if not self.interleaved:
            with _changing:
                if not self.interleaved:
                    self._replace(self.interleaved_tensors())

    def deinterleave(self) -> None:
        """Change to the layout by rows, in place: the exact inverse."""
        if self.interleaved:
            self._replace(self.row_tensors())

    @property
    def size_bytes(self) -> int:
        """Exact bytes of the tensors by rows: those on disk; interleaved ones are padded."""
        twin = self.empty(self.spec()) if self.interleaved else self
        return sum(buffer.nbytes for buffer in twin.buffers())

    def _replace(self, tensors: Mapping[str, Tensor | None]) -> None:
        for name in sorted(tensors, key=lambda name: name == self.told_by):
            setattr(self, name, tensors[name])

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """Move to a device; the dtypes belong to the format, `model.half()` doesn't change them.

        Interleaving is for a CPU: what leaves it is by rows again.
        """

        def move(tensor: Tensor) -> Tensor:
            moved = fn(tensor).contiguous()  # `channels_last` is for images, not for codes
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        super()._apply(move, recurse)  # type: ignore[no-untyped-call]
        if any(buffer.device.type != "cpu" for buffer in self.buffers()):
            self.deinterleave()
        return self

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.interleaved:
            for name, tensor in self.row_tensors().items():
                if prefix + name in destination:  # what is derived from others isn't saved
                    destination[prefix + name] = tensor

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        interleaved = self.interleaved
        self.deinterleave()
        super()._load_from_state_dict(*args, **kwargs)
        if interleaved:  # a compiled model relies on the layout
            self.interleave()
