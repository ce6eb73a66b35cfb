"""What a teacher says to each batch, computed once and kept on disk."""

import shutil
from collections.abc import Callable
from pathlib import Path

import safetensors.torch
from torch import Tensor

from tauten.core.files import whole_file

MAX_BYTES = 8 * 2**30


class Targets:
    """Tensors by index, of which memory holds those of one batch.

    Args:
        folder: Made if absent; of one teacher and one list of batches.
        max_bytes: Most disk, and never more than half of what is free; what comes after that is
            computed anew each time.
    """

    def __init__(self, folder: Path, max_bytes: int = MAX_BYTES):
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._max_bytes = min(max_bytes, shutil.disk_usage(folder).free // 2)
        self._bytes = sum(file.stat().st_size for file in folder.iterdir())

    def get(self, index: int | None, compute: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """The tensors of an index; those without one aren't kept."""
        file = self._folder / f"{index}.safetensors"
        if index is not None and file.is_file():
            return safetensors.torch.load_file(file)
        tensors = {name: tensor.contiguous() for name, tensor in compute().items()}
        size = sum(tensor.nbytes for tensor in tensors.values())
        if index is not None and self._bytes + size <= self._max_bytes:
            with whole_file(file) as opened:
                opened.write(safetensors.torch.save(tensors))
            self._bytes += size
        return tensors
