"""Tensors in memory that several processes see: a file in memory, mapped by each of them."""

import errno
import mmap
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tauten.core.errors import TautenError
from tauten.core.figures import format_bytes
from tauten.core.trees import map_tensors, tensors_of
from tauten.parallel.by_value import dump_call, loads

_ALIGNMENT_BYTES = 64


@dataclass(frozen=True)
class Placed:
    """A tensor's place in a shared file."""

    offset: int
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def size_bytes(self) -> int:
        """Of its values."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize


@dataclass(frozen=True)
class Tree:
    """A tree whose tensors lie in a shared file.

    Attributes:
        form: The tree, pickled, with a `Placed` for each tensor.
        end: Bytes of the file that it takes.
    """

    form: bytes
    end: int


class SharedFile:
    """A file that grows, mapped into memory.

    One process writes a tree, tells another (by a pipe) what `write` returned, and waits until
    that has read it.

    Args:
        path: Made where it isn't there yet; on a file system in memory nothing touches a disk.
        access: `mmap.ACCESS_COPY` keeps to this process what it writes into tensors that it read.
    """

    def __init__(self, path: Path, access: int = mmap.ACCESS_WRITE):
        self._access = access
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._path = path
        self._map: mmap.mmap | None = None

    def write(self, tree: Any) -> Tree:
        """Copy the tensors of a tree into the file, from whatever device.

        Raises:
            TautenError: The file system is full.
            UnsendableError: Something in the tree can't be pickled.
        """
        if not all(tensor.device.type in ("cpu", "meta") for tensor in tensors_of(tree)):
            tree = map_tensors(Tensor.cpu, tree)
        tensors = [tensor for tensor in tensors_of(tree) if _is_plain(tensor)]
        placed, end = _layout(tensors)
        form = dump_call(tree, {id(tensor): place for tensor, place in placed})
        self._reserve(end)
        for tensor, place in placed:
            if place.size_bytes:
                self._view(place).copy_(tensor.detach())
        return Tree(form, end)

    def read(self, tree: Tree) -> Any:
        """A tree that another process wrote; its tensors are views until the next `write`."""
        self._remap(tree.end)
        return loads(tree.form, self._view)

    def close(self) -> None:
        """Forget the file; views that are left keep their memory."""
        os.close(self._file)
        self._map = None

    def _view(self, place: Placed) -> Tensor:
        if not place.size_bytes:
            return torch.empty(place.shape, dtype=place.dtype)
        assert self._map is not None, "it is mapped before it is viewed"
        count = place.size_bytes
        flat = torch.frombuffer(self._map, dtype=torch.uint8, count=count, offset=place.offset)
        return flat.view(place.dtype).view(place.shape)

    def _reserve(self, size_bytes: int) -> None:
        size = os.fstat(self._file).st_size
        if size < size_bytes:
            try:  # not ftruncate: pages that can't be had would kill the process as it writes
                os.posix_fallocate(self._file, 0, size_bytes)
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
                raise TautenError(
                    f"{self._path.parent}: no room for {format_bytes(size_bytes)} of tensors; give "
                    "shared memory more room (docker run --shm-size) or call with fewer rows"
                ) from None
        self._remap(size_bytes)

    def _remap(self, size_bytes: int) -> None:
        if size_bytes and (self._map is None or len(self._map) < size_bytes):
            size = os.fstat(self._file).st_size
            self._map = mmap.mmap(self._file, size, access=self._access)


def _layout(tensors: list[Tensor]) -> tuple[list[tuple[Tensor, Placed]], int]:
    """Where each tensor comes to lie, one that is met twice at one place; where the last ends."""
    placed: list[tuple[Tensor, Placed]] = []
    end = 0
    for tensor in {id(tensor): tensor for tensor in tensors}.values():
        start = -(-end // _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES
        placed.append((tensor, Placed(start, tuple(tensor.shape), tensor.dtype)))
        end = start + placed[-1][1].size_bytes
    return placed, end


def _is_plain(tensor: Tensor) -> bool:
    """Whether a tensor is no more than its values; others are pickled as they are."""
    is_strided = tensor.layout is torch.strided and not tensor.is_quantized
    return type(tensor) in (Tensor, nn.Parameter) and is_strided
