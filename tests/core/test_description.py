"""Descriptions are read within bounds, strictly, and a fault is told in one line."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from typing_extensions import NotRequired, TypedDict

from tauten.core import description
from tauten.core.description import (
    MOST_CHARACTERS,
    MOST_DEPTH,
    Shape,
    Size,
    checked,
    exact,
    parse_json,
    parse_yaml,
    read_json,
)
from tauten.core.errors import CorruptError, InputError


@exact
class Part(TypedDict):
    shape: Shape
    scale: float
    note: NotRequired[str]


@dataclass(frozen=True)
class Whole:
    parts: tuple[Part, ...]
    size: Size = 1


PART = {"shape": [2, 3], "scale": 1}


def test_plain_data_becomes_what_the_type_says() -> None:
    assert checked(Whole, {"parts": [PART]}, "f") == Whole((PART,))  # type: ignore[arg-type]
    assert checked(list[Part], [PART], "f") == [PART]
    assert checked(Any, {"anything": object}, "f") == {"anything": object}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({}, r"f: damaged \(parts is missing\); mend it"),
        ({"parts": [PART, {"shape": [2]}]}, r"f: damaged \(parts.1.scale is missing\); mend it"),
        ({"parts": [{**PART, "other": 1}]}, r"f: damaged \(parts.0.other is unknown\); mend it"),
        (
            {"parts": [{**PART, "shape": []}]},
            r"f: damaged \(parts.0.shape=\[\]: .*at least 1 item.*mend it",
        ),
        (
            {"parts": [{**PART, "shape": [0]}]},
            r"f: damaged \(parts.0.shape.0=0: expected greater than or",
        ),
        (
            {"parts": [{**PART, "shape": [True]}]},
            r"f: damaged \(parts.0.shape.0=True: expected a valid int",
        ),
        (
            {"parts": [{**PART, "shape": [2.0]}]},
            r"f: damaged \(parts.0.shape.0=2.0: expected a valid int",
        ),
        (
            {"parts": [{**PART, "shape": ["2"]}]},
            r"f: damaged \(parts.0.shape.0='2': expected a valid int",
        ),
        (
            {"parts": [{**PART, "shape": [2**30] * 2}]},
            r"expected at most \d+ elements in all.*mend",
        ),
        (
            {"parts": [{**PART, "scale": "1"}]},
            r"f: damaged \(parts.0.scale='1': expected a valid number",
        ),
        ({"parts": 3}, r"f: damaged \(parts=3: expected a valid list"),
        (
            {"parts": [], "size": 2**60},
            r"f: damaged \(size=1152921504606846976: expected less than or equal",
        ),
        (["x" * 200], r"f: damaged \(\['xxx.*\.\.\.: expected"),
        ({"parts": {1}}, r"f: damaged \(Object of type set is not JSON serializable"),
    ],
    ids=str,
)
def test_a_fault_is_told_by_its_place_and_value(value: Any, message: str) -> None:
    with pytest.raises(CorruptError, match=message) as caught:
        checked(Whole, value, "f", "mend it")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 250


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "Expecting value"),
        (b'{"a": [1, 2', "Expecting"),
        (b"\xff\xfe", "utf-8"),
        (b'{"a": 1, "b": 2, "a": 3}', "'a' stands twice"),
        (b"[" * 100_000, "nested too deeply"),
        (b"[" * (MOST_DEPTH + 2) + b"]" * (MOST_DEPTH + 2), "deep"),
        (b"[" + b"1," * 5_000_000 + b"1]", "values"),
        (b'"' + b"x" * (MOST_CHARACTERS + 1) + b'"', "characters"),
        (b'["\\ud800"]', "surrogates"),
        (b'{"\\udfff": 1}', "surrogates"),
        (b"[NaN]", "nan is no finite number"),
        (b"[-Infinity]", "-inf is no finite number"),
        (b"[1e999]", "inf is no finite number"),
        (b"[18446744073709551616]", "64 bits"),
        (b"9" * 5000, "4300 digits"),
    ],
    ids=lambda value: str(value[:20]),
)
def test_text_out_of_bounds_is_refused(text: bytes, message: str) -> None:
    with pytest.raises(CorruptError, match=f"f: damaged .*{message}"):
        parse_json(text, "f")


def test_what_others_write_may_hold_what_json_lacks() -> None:
    text = '{"most": Infinity, "length": 1000000000000000019884624838656}'
    assert parse_json(text, "f", wide=True) == {"most": float("inf"), "length": int(1e30)}


@pytest.mark.parametrize("what", ["nothing", "folder", "link to nothing", "pipe", "empty", "large"])
def test_what_is_no_file_of_text_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    file = tmp_path / "f.json"
    match what:
        case "folder":
            file.mkdir()
        case "link to nothing":
            file.symlink_to(tmp_path / "missing")
        case "pipe":
            os.mkfifo(file)
        case "empty":
            file.touch()
        case "large":
            monkeypatch.setattr(description, "MOST_BYTES", 10)
            file.write_text(json.dumps(["a long list"]))
    with pytest.raises(CorruptError, match=r"f\.json.*; make it anew"):
        read_json(file)


def test_yaml_has_the_values_of_json() -> None:
    text = "a: [1, 0x10, 1.5, true, ~, 2024-01-01, 1e-2, 'x', yes]\n? b\n: {<<: c}"
    values, root = parse_yaml(text, "f")
    assert values == {
        "a": [1, 16, 1.5, True, None, "2024-01-01", "1e-2", "x", True],
        "b": {"<<": "c"},
    }
    assert root is not None and root.start_mark.line == 0
    assert parse_yaml("", "f") == (None, None)


@pytest.mark.parametrize(
    "text",
    [
        *("a: &x 1\nb: *x", "a: !!python/name:os.system", "!foo a", "a: 1\na: 2", "[1, 2"),
        *("- " * 100 + "a", "a: .inf", "1: a", "? [a]\n: b", "a: " + "9" * 5000, "a: \x07"),
        *("a: 1\n---\nb: 2", "a: \ud800", "a: 99999999999999999999"),
    ],
    ids=lambda text: ascii(text[:20]),
)
def test_other_yaml_is_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"^f: ") as caught:
        parse_yaml(text, "f")
    assert "\n" not in str(caught.value)
