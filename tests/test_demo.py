"""The demo goes on where it stopped, and its installation says what stopped it."""

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def demo() -> Any:
    spec = importlib.util.spec_from_file_location("demo", ROOT / "examples" / "demo.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def finished(out: Path) -> Path:
    out.mkdir()
    (out / "tauten.json").write_text("{}")
    return out


def test_a_finished_demo_makes_room(demo: Any, tmp_path: Path) -> None:
    demo.make_room(finished(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_stopped_demo_goes_on(demo: Any, tmp_path: Path) -> None:
    (tmp_path / "out.partial").mkdir()
    demo.make_room(finished(tmp_path / "out"))
    assert (tmp_path / "out" / "tauten.json").exists() and (tmp_path / "out.partial").exists()


def test_what_is_no_demo_stays(demo: Any, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    demo.make_room(tmp_path)
    assert (tmp_path / "notes.txt").exists()


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("OSError: [Errno 28] No space left on device", "error: the disk is full: free 3 GB; then"),
        ("connection broken by 'NewConnectionError('...", "error: no network to pypi.org: connect"),
        ('error: a compiler\'s "last" words', None),
    ],
)
def test_an_installation_that_fails_says_why(
    said: str, expected: str | None, tmp_path: Path
) -> None:
    python = tmp_path / "python"
    python.write_text(f"#!{sys.executable}\nimport sys\nsys.exit({said!r})\n")
    python.chmod(0o755)
    venv = tmp_path / "venv"
    command = ["make", "-C", str(ROOT), "demo", f"PYTHON={python}", f"VENV={venv}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode != 0 and said in done.stderr
    assert not (venv / "installed").exists()
    if expected is None:
        assert "same command" not in done.stderr
    else:
        assert expected in done.stderr
        assert "then the same command goes on where it stopped" in done.stderr
