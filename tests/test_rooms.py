"""The rooms of the package stand in one line: each imports only itself and those above it."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import tauten

ROOT = Path(tauten.__file__).parent
PILLARS = {"compression", "quantization", "parallel"}
FACES = {
    *("api", "api_parallel", "api_distributed", "cli", "cli_distributed", "methods"),
    *("cli_command", "cli_options"),
    *("faces", "faces_inspect", "faces_parallel", "faces_distributed", "faces_timing"),
    *("__init__", "__main__"),
}
LEVELS: list[set[str]] = [
    {"core"},
    {"formats"},
    {"runtime"},
    {"models"},
    {"data"},
    {"evaluation"},
    {"solvers"},
    PILLARS,
    {"distributed"},
    {"search"},
    {"report", "exporters"},
    FACES,
]
LEVEL = {room: number for number, rooms in enumerate(LEVELS) for room in rooms}
FILES = sorted(ROOT.rglob("*.py"))


def room_of(file: Path, root: Path) -> str:
    return file.relative_to(root).parts[0].removesuffix(".py")


def imported_rooms(file: Path, root: Path) -> Iterator[tuple[int, str]]:
    """Line and room of each import of the package, wherever it stands in the file."""
    package = ["tauten", *file.relative_to(root).parent.parts]
    for node in ast.walk(ast.parse(file.read_text())):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            deep = module.count(".") > 0
            names = [module] if deep else [f"{module}.{alias.name}" for alias in node.names]
        for name in names:
            head, _, rest = name.partition(".")
            if head == "tauten":
                room = rest.split(".")[0]
                yield node.lineno, room if room in LEVEL else "__init__"


def violations(file: Path, root: Path = ROOT) -> list[str]:
    own = room_of(file, root)
    found = []
    for line, room in imported_rooms(file, root):
        beside = room != own and LEVEL[room] == LEVEL[own] and own not in FACES
        if LEVEL[room] > LEVEL[own] or beside:
            found.append(f"{file.relative_to(root)}:{line}: {own} imports {room}")
    return found


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_imports_only_rooms_above(file: Path) -> None:
    found = violations(file)
    assert not found, "\n".join(found)


def test_every_file_stands_in_a_room() -> None:
    assert {room_of(file, ROOT) for file in FILES} <= set(LEVEL)


@pytest.mark.parametrize(
    ("statement", "breaks"),
    [
        ("from tauten.models.source import open_source", True),
        ("import tauten.models.source", True),
        ("def f():\n    from tauten import search", True),
        ("from tauten import RTN", True),
        ("from ..quantization import rtn", True),
        ("from .. import api", True),
        ("from . import packed", False),
        ("from .packed import PackedWeight", False),
        ("from tauten.core.errors import InputError", False),
        ("import torch\nfrom torch import nn", False),
    ],
)
def test_the_rule_sees_every_kind_of_import(tmp_path: Path, statement: str, breaks: bool) -> None:
    file = tmp_path / "formats" / "new.py"
    file.parent.mkdir()
    file.write_text(statement)
    assert bool(violations(file, tmp_path)) is breaks


def test_no_pillar_imports_another(tmp_path: Path) -> None:
    file = tmp_path / "compression" / "new.py"
    file.parent.mkdir()
    file.write_text("from tauten.quantization import RTN\n")
    assert violations(file, tmp_path) == ["compression/new.py:1: compression imports quantization"]
