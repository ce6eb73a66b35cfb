"""What every packed weight offers, and how one is rebuilt from a file."""

from abc import abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from tauten.core.description import checked
from tauten.core.errors import CorruptError, InputError, NotApplicableError

SCALE_DTYPES = (torch.float16, torch.float32)  # of scales, offsets and codebooks
FORMATS: dict[str, type["PackedWeight"]] = {}


class PackedWeight(nn.Module):
    """A weight matrix held in fewer bits.

    It is a module without `forward`, so that its tensors are buffers: they move, copy and save
    with the model. A tied weight is one `PackedWeight` object in two places.

    Attributes:
        described_by: Type of what `spec` gives; see `formats.specs`.
        shape: Shape of the weight it stands for: (out, in) or (out, in, *kernel).
    """

    kind: ClassVar[str]
    described_by: ClassVar[Any]
    shape: tuple[int, ...]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "kind" in vars(cls):  # not for what others derive, as torch.export does while it traces
            FORMATS[cls.kind] = cls

    @property
    def out_features(self) -> int:
        """Rows of the matrix."""
        return self.shape[0]

    @property
    def in_features(self) -> int:
        """Columns of the matrix; the kernel of a convolution counts as columns."""
        count = 1
        for size in self.shape[1:]:
            count *= size
        return count

    @property
    def size_bytes(self) -> int:
        """Exact bytes of its tensors, in memory and on disk alike."""
        return sum(buffer.nbytes for buffer in self.buffers())

    @property
    def bits_per_weight(self) -> float:
        """Size in bits over the number of weights, scales and all."""
        return 8 * self.size_bytes / (self.out_features * self.in_features)

    @property
    def label(self) -> str:
        """What reports call the format: its kind, and the bits of a code where it has codes."""
        bits = getattr(self, "bits", None)
        return self.kind if bits is None else f"{self.kind} {bits} bit"

    def code_layouts(self) -> dict[str, tuple[int, int]]:
        """Buffers that `bits.pack` laid out: bits of a code, and codes in the last dimension.

        These are what entropy coding makes smaller on disk.
        """
        return {}

    @abstractmethod
    def spec(self) -> dict[str, Any]:
        """JSON description from which `from_spec` rebuilds an empty twin, `kind` included."""

    @classmethod
    @abstractmethod
    def empty(cls, spec: dict[str, Any]) -> "PackedWeight":
        """A twin on the meta device: right buffer shapes and dtypes, no data.

        Args:
            spec: Of type `described_by`; `from_spec` checks what others wrote.
        Raises:
            InputError: Its values contradict each other.
        """

    def check_contents(self) -> None:
        """Raise CorruptError where a tensor's values can't be, such as an index beyond its rows.

        Shapes and dtypes are those of `empty` already.
        """
        return None

    @abstractmethod
    def dequantize_rows(self, rows: Tensor | slice, dtype: torch.dtype = torch.float32) -> Tensor:
        """Some rows of the matrix, (len(rows), in_features), in `dtype`."""

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The weight it stands for, in `shape` and `dtype`."""
        return self.dequantize_rows(slice(None), dtype).reshape(self.shape)

    def shard(self, rank: int, world: int, dim: int, unit: int = 1) -> "PackedWeight":
        """One worker's part of the weight; the parts of all workers make up the whole.

        Args:
            rank: Of the worker, from 0 on.
            world: How many workers there are.
            dim: 0 for rows of out, 1 for columns of in.
            unit: Rows or columns that stay together, such as a head or a group.
        Raises:
            InputError: A worker would get nothing, or a group of columns would be cut.
            NotApplicableError: This kind of weight can't be cut there.
        """
        if dim not in (0, 1):
            raise InputError(f"dim={dim}: expected 0 (rows of out) or 1 (columns of in)")
        start, end = shard_range(self.shape[dim], rank, world, unit)
        return self.narrow(dim, start, end - start)

    def narrow(self, dim: int, start: int, length: int) -> "PackedWeight":
        """Rows (dim 0) or inputs (dim 1) from `start` on, by rows in memory, sharing no buffer.

        Raises:
            InputError: The range is outside of the weight, or cuts a group of columns.
            NotApplicableError: This kind of weight can't be cut there.
        """
        raise NotApplicableError(f"a {self.kind} weight can't be cut in parts")

    def _narrowed(self, dim: int, start: int, length: int) -> tuple[tuple[int, ...], slice, slice]:
        """Shape, rows of the matrix and columns of the matrix that `narrow` keeps."""
        if dim not in (0, 1) or start < 0 or length < 1 or start + length > self.shape[dim]:
            got = f"dim={dim}, start={start}, length={length}"
            raise InputError(f"{got}: expected a range in a weight of shape {self.shape}")
        shape = (*self.shape[:dim], length, *self.shape[dim + 1 :])
        if dim == 0:
            return shape, slice(start, start + length), slice(0, self.in_features)
        kernel = self.in_features // self.shape[1]
        return shape, slice(0, self.out_features), slice(start * kernel, (start + length) * kernel)


def shard_range(size: int, rank: int, world: int, unit: int = 1) -> tuple[int, int]:
    """Begin and end of a worker's part of `size`, in whole units.

    The first workers get one unit more where they don't deal out evenly; the last unit is shorter
    where it doesn't divide the size.

    Raises:
        InputError: `rank` isn't one of the workers, or one of them would get nothing.
    """
    units = -(-size // unit) if unit > 0 else 0
    if not 0 <= rank < world or world > units:
        got = f"rank={rank} of world={world}, {size} in units of {unit}"
        raise InputError(f"{got}: expected 0 <= rank < world <= {units} units")
    each, more = divmod(units, world)
    begin = rank * each + min(rank, more)
    end = begin + each + (rank < more)
    return min(begin * unit, size), min(end * unit, size)


def from_spec(spec: dict[str, Any]) -> PackedWeight:
    """Rebuild an empty packed weight from what `spec()` wrote.

    Raises:
        CorruptError: The description is of an unknown kind, or not as that kind has it.
    """
    kind = spec.get("kind")
    if not isinstance(kind, str) or kind not in FORMATS:
        known = ", ".join(sorted(FORMATS))
        raise CorruptError(f"packed weight of unknown kind {kind!r}; this version knows {known}")
    where = f"description of a packed weight of kind {kind}"
    checked(FORMATS[kind].described_by, spec, where)
    try:
        return FORMATS[kind].empty(spec)
    except InputError as error:
        raise CorruptError(f"{where}: {error}; make it anew") from None


def take_rows(tensor: Tensor, rows: Tensor | slice) -> Tensor:
    """Rows by slice or by index; a negative or too large index raises IndexError."""
    return tensor[rows] if isinstance(rows, slice) else tensor.index_select(0, rows)
