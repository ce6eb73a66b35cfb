"""A journal holds what was finished, whatever killed the run that wrote it."""

import errno
import io
import json
import os
from pathlib import Path
from typing import Any

import pytest

from tauten.core.errors import BusyError, CorruptError, InputError, TautenError
from tauten.core.journal import Journal, line_of, read_entries

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


@pytest.mark.parametrize(
    "damage",
    [
        *(b"{broken\n", b"\xff\xfe\n", b"[1]\n", b"{}\n", b"\0\0\0\n", b"\n", b"\r"),
        line_of([1]),  # type: ignore[arg-type]
        line_of({}),
        json.dumps({"event": "piece"}).encode() + b"\n",  # without its digest
    ],
)
def test_a_damaged_line_before_the_last_is_named(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "journal"
    Journal(path, RUN)
    with path.open("ab") as opened:
        opened.write(damage + line_of({"event": "piece"}))
    with pytest.raises(CorruptError, match="journal:2"):
        Journal(path, RUN)


def test_a_flipped_bit_is_an_error_or_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    full = Journal(path, RUN)
    full.add("piece", index=0, name="a\u00e9", loss=0.5)
    full.add("piece", index=1)
    whole, refused = path.read_bytes(), 0
    for bit in range(8 * len(whole)):
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        try:
            entries, _ = read_entries(path)
        except CorruptError:
            refused += 1
        else:  # the end of the last line is gone, and with it the line
            assert entries == full.entries[:2]
    assert refused == 8 * len(whole) - 8


@pytest.mark.parametrize("call", ["write", "fsync"])
def test_a_line_that_does_not_fit_the_disk_leaves_the_journal_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    path = tmp_path / "journal"
    journal = Journal(path, RUN)
    before = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    class Nearly(io.FileIO):
        def write(self, content: Any) -> int:
            if len(content) < 20:
                full()
            return super().write(content[:10])

    with monkeypatch.context() as patch:
        if call == "fsync":
            patch.setattr(os, "fsync", full)
        else:
            patch.setattr("tauten.core.journal.open_to_append", lambda path, _: Nearly(path, "ab"))
        with pytest.raises(TautenError, match="journal: the disk is full"):
            journal.add("piece", index=0)
    assert path.read_bytes() == before and len(journal.entries) == 1
    journal.add("piece", index=0)
    assert Journal(path, RUN).entries == journal.entries


def test_a_journal_that_was_taken_away_does_not_come_back_without_its_lines(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal", RUN)
    (tmp_path / "journal").unlink()
    with pytest.raises(TautenError, match=r"journal: its folder isn't there \(any more\)"):
        journal.add("piece", index=0)
    assert os.listdir(tmp_path) == []


def test_a_link_in_the_place_of_a_journal_is_refused(tmp_path: Path) -> None:
    (tmp_path / "journal").symlink_to(tmp_path / "victim")
    with pytest.raises(InputError, match="journal is a symbolic link"):
        Journal(tmp_path / "journal", RUN)
    assert not (tmp_path / "victim").exists()


def test_an_entry_is_on_the_disk_before_add_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, synced = tmp_path / "journal", []
    monkeypatch.setattr(os, "fsync", lambda _: synced.append(path.read_bytes().count(b"\n")))
    Journal(path, RUN).add("piece", index=0)
    assert synced == [1, 2]
