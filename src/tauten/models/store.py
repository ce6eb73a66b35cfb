"""A folder of finished blocks: what a walk leaves on disk as it goes."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from tauten.core.files import make_folder, sha256_file, whole_file
from tauten.core.journal import Journal
from tauten.models.reader import SafetensorsReader
from tauten.models.safetensors_writer import Joined


class BlockStore:
    """One safetensors file a part of the model, each whole or absent.

    A part counts as finished when the journal has its line and its file still has the same hash.

    Args:
        folder: Made if absent.
        journal: Of the run.
        trial: Name of the trial, unique in the journal.
    """

    def __init__(self, folder: Path, journal: Journal, trial: str):
        make_folder(folder)
        self.folder, self._journal, self._trial = folder, journal, trial

    def finished(self, part: str) -> dict[str, Any] | None:
        """What was recorded of a part: its specs and layer records; None if it isn't done."""
        entry = self._journal.find("block", trial=self._trial, part=part)
        file = self.file(part)
        if entry is None or not file.is_file() or sha256_file(file) != entry["sha256"]:
            return None
        return entry

    def write(self, part: str, tensors: dict[str, Tensor], **record: Any) -> None:
        """Save a part's tensors and journal it."""
        file = self.file(part)
        content = {name: tensor.contiguous() for name, tensor in tensors.items()}
        encoded = safetensors.torch.save(content)
        with whole_file(file) as opened:
            opened.write(encoded)
        digest = hashlib.sha256(encoded).hexdigest()
        self._journal.add("block", trial=self._trial, part=part, sha256=digest, **record)

    def read(self, part: str) -> dict[str, Tensor]:
        """Tensors of a finished part, by their names in the model."""
        reader = self.reader([part])
        return {name: reader.read(name) for name in reader.names()}

    def reader(self, parts: Sequence[str]) -> SafetensorsReader:
        """Tensors of finished parts, read one by one."""
        return SafetensorsReader([self.file(part) for part in parts])

    def file(self, part: str) -> Path:
        """File of a part."""
        return self.folder / f"{part or 'outer'}.safetensors"

    def joined(self, parts: list[str]) -> Joined:
        """All parts as one file that can be sized and written."""
        return Joined([self.file(part) for part in parts], {"format": "pt"})
