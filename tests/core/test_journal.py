"""A journal holds what was finished, whatever killed the run that wrote it."""

import json
import os
from pathlib import Path

import pytest

from tauten.core.errors import BusyError, CorruptError
from tauten.core.journal import Journal

RUN = {"source": "model", "seed": 0, "goal": {"max_drop": 0.01, "limits": (1, 2)}}


def test_what_was_added_is_read_back_in_order(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal", RUN)
    journal.add("piece", index=0, sha="ab")
    journal.add("piece", index=1, sha="cd")
    journal.add("other piece", recipe=("x", 1))
    again = Journal(tmp_path / "journal", RUN)
    assert again.entries == journal.entries
    assert [entry["event"] for entry in again.entries] == ["run", "piece", "piece", "other piece"]
    assert again.find("piece", index=1) == {"event": "piece", "index": 1, "sha": "cd"}
    assert again.find("piece", index=1, sha="ab") is None
    assert again.find("another") is None


def test_reading_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    Journal(path, RUN).add("piece", index=0)
    before = path.read_bytes()
    Journal(path, RUN)
    assert path.read_bytes() == before


def test_a_journal_cut_at_any_byte_goes_on_from_its_last_whole_line(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    full = Journal(path, RUN)
    full.add("piece", index=0)
    full.add("piece", index=1)
    whole = path.read_bytes()
    for cut in range(len(whole)):
        path.write_bytes(whole[:cut])
        resumed = Journal(path, RUN)
        kept = max(1, whole[:cut].count(b"\n"))  # a torn first line is written anew
        assert resumed.entries == full.entries[:kept]
        for entry in full.entries[kept:]:
            resumed.add(**entry)
        assert path.read_bytes() == whole


@pytest.mark.parametrize("change", [{"seed": 1}, {"source": "other"}, {"more": 1}])
def test_the_journal_of_another_run_is_refused_and_left_alone(
    tmp_path: Path, change: dict[str, object]
) -> None:
    path = tmp_path / "journal"
    Journal(path, RUN)
    before = path.read_bytes()
    with pytest.raises(BusyError, match=f"another {next(iter(change))};"):
        Journal(path, {**RUN, **change})
    assert path.read_bytes() == before


def test_a_run_that_names_less_is_another_run(tmp_path: Path) -> None:
    Journal(tmp_path / "journal", RUN)
    with pytest.raises(BusyError, match="another seed;"):
        Journal(tmp_path / "journal", {k: v for k, v in RUN.items() if k != "seed"})


@pytest.mark.parametrize("damage", [b"{broken\n", b"\xff\xfe\n", b"[1]\n", b"{}\n", b"\0\0\0\n"])
def test_a_damaged_line_before_the_last_is_named(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "journal"
    Journal(path, RUN)
    with path.open("ab") as opened:
        opened.write(damage + json.dumps({"event": "piece"}).encode() + b"\n")
    with pytest.raises(CorruptError, match="journal:2"):
        Journal(path, RUN)


def test_an_entry_is_on_the_disk_before_add_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, synced = tmp_path / "journal", []
    monkeypatch.setattr(os, "fsync", lambda _: synced.append(path.read_bytes().count(b"\n")))
    Journal(path, RUN).add("piece", index=0)
    assert synced == [1, 2]
