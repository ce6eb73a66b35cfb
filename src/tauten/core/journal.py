"""An append-only record of what a run has finished; resuming is reading it."""

import contextlib
import hashlib
import json
import os
from pathlib import Path
from typing import Any

from tauten.core.description import checked, parse_json
from tauten.core.errors import BusyError, CorruptError
from tauten.core.files import open_to_append, refuse_link, writing
from tauten.core.journal_entries import ENTRIES, Entry

_REMEDY = "delete the folder to start the run anew"


class Journal:
    """One JSON line a finished piece of work, behind its digest; on the disk before `add` returns.

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
        refuse_link(path)
        self._path = path
        self.entries, whole = read_entries(path)
        if path.exists() and whole < path.stat().st_size:
            with writing(path):
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
        """Record something as finished.

        Raises:
            DiskError: The disk refuses; the journal is as it was.
        """
        entry = {"event": event, **values}
        is_new = not self.entries  # else a folder that was taken away would come back without them
        with writing(self._path), open_to_append(self._path, is_new) as opened:
            before, rest = opened.tell(), memoryview(line_of(entry))
            try:
                while rest:
                    rest = rest[opened.write(rest) :]
                os.fsync(opened.fileno())
            except BaseException:
                with contextlib.suppress(OSError):  # then the torn line is dropped when it is read
                    opened.truncate(before)
                raise
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
    for line in _content(path).split(b"\n")[:-1]:
        entries.append(_entry(path, len(entries) + 1, line))
        whole += len(line) + 1
    return entries, whole


def line_of(entry: dict[str, Any]) -> bytes:
    """The line of an entry."""
    text = json.dumps(entry, sort_keys=True).encode()
    return _digest(text) + b" " + text + b"\n"


def _digest(text: bytes) -> bytes:
    return hashlib.sha256(text).hexdigest()[:16].encode()


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes() if os.path.lexists(path) else b""
    except OSError as error:
        raise CorruptError(f"{path}: can't be read ({error.strerror}); {_REMEDY}") from None


def _entry(path: Path, number: int, line: bytes) -> dict[str, Any]:
    where, (digest, _, text) = f"{path}:{number}", line.partition(b" ")
    if digest != _digest(text):
        raise CorruptError(f"{where}: damaged, or of another version of Tauten; {_REMEDY}")
    entry: dict[str, Any] = parse_json(text, where, _REMEDY, wide=True)
    kind = ENTRIES.get(checked(Entry, entry, where, _REMEDY)["event"], Entry)
    checked(kind, entry, where, _REMEDY)
    return entry
