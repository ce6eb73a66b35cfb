"""Descriptions of packed weights come from files: a damaged one is refused, whatever the damage."""

from typing import Any

import pytest

from tauten.core.errors import CorruptError
from tauten.formats import codebook, integer, sparse, sum, ternary  # noqa: F401  (register)
from tauten.formats.packed import FORMATS, from_spec

INTEGER = {
    "kind": "integer",
    "shape": [4, 6],
    "bits": 4,
    "group_size": 2,
    "zero": "integer",
    "scale_dtype": "float16",
}
CODEBOOK = {
    "kind": "codebook",
    "shape": [4, 6],
    "bits": 4,
    "books": 1,
    "codebook_dtype": "float16",
}
SPARSE = {
    "kind": "sparse",
    "shape": [4, 8],
    "pattern": "2:4",
    "slots": 32,
    "values": "codes",
    "bits": 4,
    "group_size": 2,
    "zero": "integer",
    "scale_dtype": "float16",
}
SPARSE_FLOATS = {
    "kind": "sparse",
    "shape": [4, 6],
    "pattern": "any",
    "slots": 7,
    "values": "bfloat16",
}
TERNARY = {**INTEGER, "kind": "ternary", "bits": 2, "zero": "none"}
SUM = {"kind": "sum", "first": INTEGER, "second": TERNARY}
SPECS = (INTEGER, CODEBOOK, SPARSE, SPARSE_FLOATS, TERNARY, SUM)
DAMAGE: dict[str, tuple[Any, ...]] = {
    "kind": (None, 5, "integre", ["integer"], {}),
    "shape": (None, 5, [], [-4, 6], [4.0, 6], ["4", 6], [2**62, 2**62], [[4], 6], {}),
    "bits": (None, 0, 9, "4", 4.5, [4], 4.0),
    "group_size": (None, -1, "2", [2]),
    "zero": (None, "floaty", 0, []),
    "scale_dtype": (None, "float64", "int8", 16, "nn"),
    "books": (None, 0, 2, "1", [1]),
    "codebook_dtype": (None, "float64", "__name__", 16),
    "pattern": (None, "4:2", 0, []),
    "slots": (None, -1, "7", 2.5, [7]),
    "values": (None, "float64", "int8", 4, []),
    "first": (None, 5, {}, [], {**INTEGER, "shape": [4, 7]}),
    "second": (None, 5, {}, [], {**TERNARY, "bits": 3}),
}


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec["kind"])
def test_a_description_rebuilds_itself(spec: dict[str, Any]) -> None:
    assert from_spec(spec).spec() == spec


@pytest.mark.parametrize(
    ("spec", "field", "value"),
    [(spec, field, value) for spec in SPECS for field in spec for value in DAMAGE[field]],
    ids=lambda value: value["kind"] if isinstance(value, dict) and value else str(value),
)
def test_a_damaged_field_is_refused(spec: dict[str, Any], field: str, value: Any) -> None:
    with pytest.raises(CorruptError):
        from_spec({**spec, field: value})


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec["kind"])
def test_a_missing_field_is_refused(spec: dict[str, Any]) -> None:
    for field in spec:
        with pytest.raises(CorruptError):
            from_spec({k: v for k, v in spec.items() if k != field})


def test_a_weight_without_columns_is_refused() -> None:
    with pytest.raises(CorruptError):
        from_spec({**INTEGER, "shape": [4, 0], "group_size": 0})


def test_an_unknown_kind_is_refused_with_those_known() -> None:
    with pytest.raises(CorruptError, match=r"'mystery'.*codebook.*integer"):
        from_spec({"kind": "mystery"})
    assert set(FORMATS) >= {"integer", "codebook"}
