"""What `import tauten` offers, and what it leaves unimported."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import tauten
from tauten.formats.packed import FORMATS

LIGHT = """
import sys
import tauten
from typer.testing import CliRunner
from tauten.cli import app
for word in ("--help", "--version"):
    done = CliRunner().invoke(app, [word])
    assert done.exit_code == 0 and done.stdout, word
print(sorted({"torch", "transformers", "numpy"} & set(sys.modules)))
from tauten.formats.packed import FORMATS
print(sorted(FORMATS))
"""


def test_help_needs_no_torch_and_reading_a_weight_knows_every_format() -> None:
    """In a process of its own: here everything is imported already."""
    done = subprocess.run([sys.executable, "-c", LIGHT], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["[]", str(sorted(FORMATS))]


def test_every_name_is_where_type_checkers_are_told() -> None:
    (checked,) = (
        node
        for node in ast.parse(Path(tauten.__file__).read_text()).body
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    )
    told = {alias.name: node.module for node in checked.body for alias in node.names}
    assert told == tauten._HOMES
    assert {*told, "__version__"} == set(tauten.__all__) <= set(dir(tauten))
    for name, module in told.items():
        assert getattr(tauten, name) is getattr(sys.modules[module], name)


def test_a_name_that_is_not_there() -> None:
    with pytest.raises(AttributeError, match="'tauten' has no attribute 'quantise'"):
        tauten.quantise  # noqa: B018
    with pytest.raises(ImportError, match="quantise"):
        from tauten import quantise  # noqa: F401
