"""An append-only record of what a run has finished; resuming is reading it."""

import json
import os
from pathlib import Path
from typing import Any

from tauten.core.description import checked, parse_json
from tauten.core.errors import BusyError, CorruptError
from tauten.core.journal_entries import ENTRIES, Entry

_REMEDY = "delete the folder to start the run anew"


class Journal:
    """One JSON line a finished piece of work, on the disk before `add` returns.

    The first line names the run; a journal of another run is never continued. A last line that a
    kill cut short is dropped.

    Args:
        path: The file; made if absent.
        run: What identifies the run: source, data, goal, seed, version.
    Raises:
        BusyError: The file belongs to another run.
        CorruptError: A line other than a torn last one is damaged.
    """

    def __init__(self, path: Path, run: dict[str, Any]):
        self._path = path
        self.entries, whole = read_entries(path)
        if path.exists() and whole < path.stat().st_size:
            os.truncate(path, whole)
        if not self.entries:
            self.add("run", **run)
        elif self.entries[0] != json.loads(json.dumps({"event": "run", **run})):
            given, held = json.loads(json.dumps({"event": "run", **run})), self.entries[0]
            changed = sorted(k for k in given | held if given.get(k) != held.get(k))
            raise BusyError(
                f"{path.parent} holds an unfinished run with another {', '.join(changed)}; "
                "repeat that command, delete the folder, or pass another output folder"
            )

    def add(self, event: str, **values: Any) -> None:
        """Record something as finished."""
        entry = {"event": event, **values}
        with self._path.open("ab") as opened:
            opened.write(json.dumps(entry, sort_keys=True).encode() + b"\n")
            opened.flush()
            os.fsync(opened.fileno())
        self.entries.append(json.loads(json.dumps(entry)))

    def find(self, event: str, **values: Any) -> dict[str, Any] | None:
        """The entry of an event with these values, None if it hasn't happened."""
        for entry in self.entries:
            if entry["event"] == event and all(entry.get(k) == v for k, v in values.items()):
                return entry
        return None


def read_entries(path: Path) -> tuple[list[dict[str, Any]], int]:
    """What a journal holds, its run first, and how many bytes of whole lines; none of no file."""
    entries: list[dict[str, Any]] = []
    whole = 0
    for line in _content(path).splitlines(keepends=True):
        if not line.endswith(b"\n"):
            break
        entries.append(_entry(path, len(entries) + 1, line))
        whole += len(line)
    return entries, whole


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes() if os.path.lexists(path) else b""
    except OSError as error:
        raise CorruptError(f"{path}: can't be read ({error.strerror}); {_REMEDY}") from None


def _entry(path: Path, number: int, line: bytes) -> dict[str, Any]:
    where = f"{path}:{number}"
    entry: dict[str, Any] = parse_json(line, where, _REMEDY, wide=True)
    kind = ENTRIES.get(checked(Entry, entry, where, _REMEDY)["event"], Entry)
    checked(kind, entry, where, _REMEDY)
    return entry
