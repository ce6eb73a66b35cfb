"""What every packed weight offers, and how one is rebuilt from a file."""

from abc import abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from tauten.core.errors import CorruptError

FORMATS: dict[str, type["PackedWeight"]] = {}


class PackedWeight(nn.Module):
    """A weight matrix held in fewer bits.

    It is a module without `forward`, so that its tensors are buffers: they move, copy and save
    with the model. A tied weight is one `PackedWeight` object in two places.

    Attributes:
        shape: Shape of the weight it stands for: (out, in) or (out, in, *kernel).
    """

    kind: ClassVar[str]
    shape: tuple[int, ...]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
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

    @abstractmethod
    def spec(self) -> dict[str, Any]:
        """JSON description from which `from_spec` rebuilds an empty twin, `kind` included."""

    @classmethod
    @abstractmethod
    def empty(cls, spec: dict[str, Any]) -> "PackedWeight":
        """A twin on the meta device: right buffer shapes and dtypes, no data."""

    @abstractmethod
    def dequantize_rows(self, rows: Tensor | slice, dtype: torch.dtype = torch.float32) -> Tensor:
        """Some rows of the matrix, (len(rows), in_features), in `dtype`."""

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The weight it stands for, in `shape` and `dtype`."""
        return self.dequantize_rows(slice(None), dtype).reshape(self.shape)


def from_spec(spec: dict[str, Any]) -> PackedWeight:
    """Rebuild an empty packed weight from what `spec()` wrote.

    Raises:
        CorruptError: The description is of an unknown kind or lacks a field.
    """
    kind = spec.get("kind")
    if not isinstance(kind, str) or kind not in FORMATS:
        known = ", ".join(sorted(FORMATS))
        raise CorruptError(f"packed weight of unknown kind {kind!r}; this version knows {known}")
    try:
        return FORMATS[kind].empty(spec)
    except (LookupError, TypeError, ValueError, ArithmeticError, RuntimeError) as error:
        raise CorruptError(f"packed weight description {spec} is damaged: {error}") from error


def take_rows(tensor: Tensor, rows: Tensor | slice) -> Tensor:
    """Rows by slice or by index; a negative or too large index raises IndexError."""
    return tensor[rows] if isinstance(rows, slice) else tensor.index_select(0, rows)
