"""Finished tasks on disk: what a run that goes on after a kill needn't do again."""

import hashlib
from pathlib import Path
from typing import Any

from tauten.core.errors import CorruptError, InputError
from tauten.core.files import make_folder, sha256_file, whole_file
from tauten.core.journal import Journal
from tauten.distributed.wire import decode, encode


class Record:
    """A file for each task's result, and a line in the journal once it is whole.

    A line also holds a digest of what the task was given, so that no result is taken for that of
    another input.

    Args:
        folder: Made if absent; of one run at a time.
        run: What identifies the run, as for `Journal`.
    Raises:
        BusyError: The folder belongs to another run.
    """

    def __init__(self, folder: Path, run: dict[str, Any]):
        make_folder(folder / "results")
        self._whole, self._folder = folder, folder / "results"
        self._journal = Journal(folder / "journal.jsonl", run)
        self._inputs = {
            entry["id"]: entry["input"]
            for entry in self._journal.entries
            if entry["event"] == "task" and self._is_whole(entry)
        }

    def __len__(self) -> int:
        return len(self._inputs)

    def holds(self, id: str, payload: Any) -> bool:
        """Whether it has the result of a task.

        Raises:
            InputError: It has one of a task that was given something else.
        """
        if id not in self._inputs:
            return False
        if self._inputs[id] != _digest(encode(payload)):
            raise InputError(
                f"{self._whole} holds results of other inputs, from number {int(id) + 1} on; give "
                "the same ones in the same order, or another folder"
            )
        return True

    def add(self, id: str, payload: Any, result: Any) -> None:
        """Keep the result of a task that was given a payload."""
        content, given = encode(result), _digest(encode(payload))
        with whole_file(self._file(id)) as opened:
            opened.write(content)
        self._inputs[id] = given
        self._journal.add("task", id=id, sha256=_digest(content), input=given)

    def read(self, id: str) -> Any:
        """A result."""
        file = self._file(id)
        try:
            return decode(file.read_bytes())
        except OSError as error:
            raise CorruptError(f"{file}: can't be read ({error.strerror})") from None

    def _is_whole(self, entry: dict[str, Any]) -> bool:
        file = self._file(entry["id"])
        return file.is_file() and sha256_file(file) == entry["sha256"]

    def _file(self, id: str) -> Path:
        return self._folder / f"{id}.bin"


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
