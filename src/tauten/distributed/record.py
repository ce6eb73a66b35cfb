"""Finished tasks on disk: what a run that goes on after a kill needn't do again."""

import hashlib
from pathlib import Path
from typing import Any

from tauten.core.files import sha256_file, whole_file
from tauten.core.journal import Journal
from tauten.distributed.wire import decode, encode


class Record:
    """A file for each task's result, and a line in the journal once it is whole.

    Args:
        folder: Made if absent; of one run at a time.
        run: What identifies the run, as for `Journal`.
    Raises:
        BusyError: The folder belongs to another run.
    """

    def __init__(self, folder: Path, run: dict[str, Any]):
        (folder / "results").mkdir(parents=True, exist_ok=True)
        self._folder = folder / "results"
        self._journal = Journal(folder / "journal.jsonl", run)
        self._digests = {
            entry["id"]: entry["sha256"]
            for entry in self._journal.entries
            if entry["event"] == "task" and self._is_whole(entry)
        }

    def __contains__(self, id: str) -> bool:
        return id in self._digests

    def __len__(self) -> int:
        return len(self._digests)

    def add(self, id: str, result: Any) -> None:
        """Keep a result."""
        content = encode(result)
        with whole_file(self._file(id)) as opened:
            opened.write(content)
        self._digests[id] = hashlib.sha256(content).hexdigest()
        self._journal.add("task", id=id, sha256=self._digests[id])

    def read(self, id: str) -> Any:
        """A result."""
        return decode(self._file(id).read_bytes())

    def _is_whole(self, entry: dict[str, Any]) -> bool:
        file = self._file(entry["id"])
        return file.is_file() and sha256_file(file) == entry["sha256"]

    def _file(self, id: str) -> Path:
        return self._folder / f"{id}.bin"
