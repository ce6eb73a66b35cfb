"""Digests of whole files, kept as long as nothing of the file has changed, and of JSON itself."""

import json
import os
from pathlib import Path

import pytest

from tauten.core import digests
from tauten.core.digests import file_digests, sealed, unsealed
from tauten.core.errors import CorruptError
from tauten.core.files import sha256_file


@pytest.fixture
def read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of files that were read; the cache of this test is its own, and keeps small files."""
    names: list[str] = []

    def seen(path: Path) -> str:
        names.append(path.name)
        return sha256_file(path)

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(digests, "sha256_file", seen)
    monkeypatch.setattr(digests, "_KEPT_BYTES", 100)
    monkeypatch.setattr(digests, "_SETTLED_NS", 0)
    return names


def flip(file: Path, at: int) -> None:
    with file.open("r+b") as opened:
        opened.seek(at)
        opened.write(b"y")


def test_every_byte_counts_and_what_is_known_is_not_read_again(
    tmp_path: Path, read: list[str]
) -> None:
    large, small = tmp_path / "large", tmp_path / "small"
    large.write_bytes(b"x" * 300_000)
    small.write_bytes(b"x")
    first = file_digests([small, large])
    assert first == [sha256_file(small), sha256_file(large)] and read == ["small", "large"]
    assert file_digests([large, small]) == first[::-1] and read[2:] == ["small"]
    times = large.stat().st_atime_ns, large.stat().st_mtime_ns
    flip(large, 150_000)  # amid the file, and its time is put back
    os.utime(large, ns=times)
    assert file_digests([large]) == [sha256_file(large)] != first[1:]


@pytest.mark.parametrize("change", ["copy", "touch", "longer"])
def test_a_file_that_may_have_changed_is_read_again(
    tmp_path: Path, read: list[str], change: str
) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"x" * 1000)
    file_digests([file])
    if change == "copy":
        (tmp_path / "other").write_bytes(b"y" * 1000)
        os.replace(tmp_path / "other", file)
    elif change == "touch":
        os.utime(file)
    else:
        file.write_bytes(b"x" * 1001)
    assert file_digests([file]) == [sha256_file(file)] and read == ["file", "file"]


def test_a_file_that_was_just_written_is_not_kept(
    tmp_path: Path, read: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(digests, "_SETTLED_NS", 10**12)
    (tmp_path / "file").write_bytes(b"x" * 1000)
    file_digests([tmp_path / "file"])
    assert not (tmp_path / "cache").exists()


def test_a_damaged_cache_or_none_only_costs_time(tmp_path: Path, read: list[str]) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"x" * 1000)
    first, cache = file_digests([file]), tmp_path / "cache/tauten/digests.json"
    whole = cache.read_bytes()
    at = whole.index(first[0].encode())
    for damaged in (b"", b"[]", b"{}", whole[:50], whole[:at] + b"0" + whole[at + 1 :]):
        cache.write_bytes(damaged)
        assert file_digests([file]) == first
    cache.unlink()
    cache.parent.rmdir()
    cache.parent.symlink_to(tmp_path / "nowhere")
    assert file_digests([file]) == first and not (tmp_path / "nowhere").exists()


def test_the_oldest_are_forgotten(
    tmp_path: Path, read: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(digests, "_MOST_KEPT", 2)
    files = [tmp_path / name for name in "abc"]
    for file in files:
        file.write_bytes(b"x" * 1000)
        file_digests([file])
    del read[:]
    file_digests(files)
    assert read == ["a"]


def test_a_seal_holds_over_every_bit_and_not_over_the_layout() -> None:
    value = {"x": [1, 2.5, None, True, "é"], "y": {"10": 1, "2": {}}, "z": 1e-7}
    whole, file = sealed(value), Path("manifest.json")
    assert unsealed(json.loads(json.dumps(whole, indent=7)), file, "") == value
    text, refused = json.dumps(whole).encode(), 0
    for bit in range(8 * len(text)):
        flipped = bytearray(text)
        flipped[bit // 8] ^= 1 << bit % 8
        try:
            read = unsealed(json.loads(flipped), file, "make it anew")
        except ValueError as error:  # of JSON, of UTF-8, or ours
            refused += 1
            assert not isinstance(error, CorruptError) or "manifest.json: changed" in str(error)
        else:  # the name of the digest itself
            assert {key: read[key] for key in value} == value
    assert refused > 8 * len(text) - 100


def test_numbers_as_names_and_what_earlier_versions_wrote() -> None:
    assert unsealed(json.loads(json.dumps(sealed({"x": {2: 1, 10: 2}}))), Path("f"), "")  # type: ignore[dict-item]
    assert unsealed({"x": 1}, Path("f"), "") == {"x": 1}
    with pytest.raises(CorruptError, match=r"f: damaged \(no JSON object\); make it anew"):
        unsealed([1], Path("f"), "make it anew")
