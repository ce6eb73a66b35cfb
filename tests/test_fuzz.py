"""The campaign of damaged files sees every fault that is planted in a reader."""

import os
import random
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from fuzz import child, limits
from fuzz.campaign import Numbers
from fuzz.child import VERDICTS, Batch, Damaged, UnreadableError, by_seed, read_many
from fuzz.mutate import BYTES, FORMS, mutate
from fuzz.reader import Reader, plain
from fuzz.run import again, keep
from tauten.core.errors import CorruptError, InputError

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
WHOLE = b'{"format": 1, "names": ["a", "b"]}\n'


def refuse(_: bytes) -> None:
    raise InputError("format: expected 1")


def fail(_: bytes) -> None:
    raise KeyError("names")


def die(_: bytes) -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def leave(_: bytes) -> None:
    os._exit(3)


def sleep(_: bytes) -> None:
    time.sleep(600)


def spin(_: bytes) -> None:
    while True:
        pass


def hoard(_: bytes) -> int:
    return len(bytearray(b"\1") * (300 * 2**20))


def reserve(_: bytes) -> None:
    torch.empty(2**50, dtype=torch.uint8)


def reserve_in_disguise(_: bytes) -> None:
    try:
        torch.empty(2**50, dtype=torch.uint8)
    except RuntimeError as error:
        raise CorruptError("the file is damaged") from error


def reader(damaged: Callable[[bytes], Any], **options: Any) -> Reader:
    """Reads a file as it is, and as is planted where it isn't whole."""

    def read(place: Path) -> Any:
        content = (place / "file.json").read_bytes()
        return "whole" if content == WHOLE else damaged(content)

    return Reader("planted", lambda place: None, read, **options)


def batch(reading: Reader, place: Path, most: int = 1) -> Batch:
    whole = {"file.json": WHOLE}
    damaged = partial(by_seed, reading, whole, 0)
    return Batch(reading, place / "input", whole, damaged, 0, most=most)


@pytest.mark.parametrize(
    ("planted", "vouched", "verdict", "said"),
    [
        (lambda _: "whole", True, "same", ""),
        (refuse, True, "refused", "format: expected 1"),
        (lambda content: content, False, "other", ""),
        (lambda content: content, True, "silent", ""),
        (fail, True, "foreign", "KeyError: 'names'"),
        (die, True, "crash", "SIGSEGV"),
        (leave, True, "crash", "exit code 3"),
        (sleep, True, "hang", "SIGALRM"),
        (spin, True, "hang", "SIG"),
        (hoard, True, "memory", "allowed"),
        (reserve, True, "memory", "allocate"),
        (reserve_in_disguise, True, "memory", "allocate"),
    ],
)
def test_a_planted_fault_has_its_verdict(
    tmp_path: Path, monkeypatch, planted, vouched: bool, verdict: str, said: str
) -> None:
    if verdict == "hang":
        monkeypatch.setattr(limits, "SLOWEST_S", 0.1)
    one = batch(reader(planted, vouched=vouched), tmp_path)
    progress, found = read_many(one)
    assert progress.counts == {**dict.fromkeys(VERDICTS, 0), verdict: 1}
    assert [f.verdict for f in found] == [verdict] * (verdict in child.BAD)
    assert all(said in f.said for f in found)


def test_a_batch_goes_on_to_the_case_that_ends_it(tmp_path: Path) -> None:
    def read(content: bytes) -> Any:
        return die(content) if len(content) > 2 * len(WHOLE) else refuse(content)

    many = batch(reader(read), tmp_path, most=500)
    progress, found = read_many(many)
    assert progress.number < 499 and [f.number for f in found] == [progress.number]
    assert progress.counts == {
        **dict.fromkeys(VERDICTS, 0),
        "crash": 1,
        "refused": progress.number,
    }


def test_a_reader_that_fails_undamaged_is_an_error(tmp_path: Path) -> None:
    broken = Reader("broken", lambda place: None, lambda place: 1 / 0)
    with pytest.raises(UnreadableError, match=r"(?s)broken: undamaged.*ZeroDivisionError"):
        read_many(batch(broken, tmp_path))


def test_a_forged_file_is_sealed_before_it_is_read(tmp_path: Path) -> None:
    sealed = reader(refuse, seal=lambda place: (place / "file.json").write_bytes(WHOLE))
    assert read_many(batch(sealed, tmp_path))[0].counts["same"] == 1


def test_the_first_finding_of_a_kind_is_kept_and_read_again(tmp_path: Path, capfd) -> None:
    planted = reader(fail)
    kinds: set[str] = set()
    for _ in range(2):
        progress, (finding,) = read_many(batch(planted, tmp_path, most=3))
        assert progress.counts["foreign"] == 3
        keep(finding, 7, {"file.json": WHOLE}, tmp_path / "found", kinds)
    assert len(kinds) == 1
    assert [path.name for path in (tmp_path / "found").iterdir()] == ["planted-7-0"]
    assert "--again" in capfd.readouterr().out
    assert again({"planted": planted}, tmp_path / "found" / "planted-7-0") == 1
    assert "KeyError: 'names'" in capfd.readouterr().out
    assert again({"planted": reader(refuse)}, tmp_path / "found" / "planted-7-0") == 0


@pytest.mark.parametrize("form", ["bytes", *FORMS])
def test_damage_is_that_of_its_seed_and_never_none(form: str) -> None:
    contents = (WHOLE, b"a", b"steps:\n- a: 1\n", len(WHOLE).to_bytes(8, "little") + WHOLE)
    for content in contents:
        for seed in range(200):
            made, said = mutate(content, form, random.Random(seed))
            assert made != content
            assert (made, said) == mutate(content, form, random.Random(seed))


@pytest.mark.parametrize("form", FORMS)
def test_each_kind_of_damage_takes_whatever_was_left_by_another(form: str) -> None:
    for damage in (*BYTES.values(), *FORMS[form].values()):
        for content in (b"", b"\xff", b"{", b"- a", b"\0" * 20, b"[]", b"null"):
            for seed in range(20):
                assert isinstance(damage(content, random.Random(seed)), bytes)


def test_a_campaign_goes_on_with_the_next_number_of_its_seed(tmp_path: Path) -> None:
    first = Numbers(tmp_path / "read.json", 1)
    first.add("recipe", 10, {"same": 4, "refused": 6})
    second = Numbers(tmp_path / "read.json", 1)
    assert second.next("recipe") == 10 and second.next("plan") == 0
    second.add("recipe", 12, {"same": 2})
    assert Numbers(tmp_path / "read.json", 1).total("recipe") == {"same": 6, "refused": 6}
    assert Numbers(tmp_path / "read.json", 2).next("recipe") == 0


def test_plain_data_is_equal_where_bits_are() -> None:
    nan, zero = torch.tensor([float("nan")]), torch.tensor([0.0])
    assert plain([nan, float("nan")]) == plain([nan.clone(), float("nan")])
    assert plain(zero) != plain(-zero)
    assert plain(zero) != plain(zero.double())


def test_a_file_that_is_gone_is_damage_too(tmp_path: Path) -> None:
    gone = Damaged(0, "file.json", None, "gone")
    planted = reader(refuse)
    one = Batch(planted, tmp_path / "input", {"file.json": WHOLE}, lambda _: gone, 0)
    (finding,) = read_many(one)[1]
    assert finding.verdict == "foreign" and finding.content is None
