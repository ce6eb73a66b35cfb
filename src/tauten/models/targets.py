"""What a teacher says to each batch, computed once and kept on disk."""

import shutil
from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from tauten.core.files import make_folder
from tauten.models.kept_tensors import read_tensors, write_tensors

MAX_BYTES = 8 * 2**30


class Targets:
    """Tensors by index, of which memory holds those of one batch.

    Args:
        folder: Made if absent; of one teacher and one list of batches.
        max_bytes: Most disk, 8 GiB by default, and never more than half of what is free; what
            comes after that is computed anew each time.
    """

    def __init__(self, folder: Path, max_bytes: int | None = None):
        make_folder(folder)
        self._folder = folder
        most = MAX_BYTES if max_bytes is None else max_bytes
        self._max_bytes = min(most, shutil.disk_usage(folder).free // 2)
        self._bytes = sum(file.stat().st_size for file in folder.iterdir())

    def get(self, index: int | None, compute: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """The tensors of an index; those without one aren't kept."""
        if index is not None and self.holds(index):
            return read_tensors(self._file(index), "delete it")[0]
        tensors = compute()
        if index is not None:
            self.put(index, tensors)
        return tensors

    def holds(self, index: int) -> bool:
        """Whether the tensors of an index are on disk."""
        return self._file(index).is_file()

    def put(self, index: int, tensors: dict[str, Tensor]) -> bool:
        """Keep the tensors of an index, whether there is room for them."""
        size = sum(tensor.nbytes for tensor in tensors.values())
        if self._bytes + size > self._max_bytes:
            return False
        write_tensors(self._file(index), tensors)
        self._bytes += size
        return True

    def _file(self, index: int) -> Path:
        return self._folder / f"{index}.safetensors"
