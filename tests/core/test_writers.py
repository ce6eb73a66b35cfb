"""There is one way to write a file, one to make a temporary folder, and one to log."""

import re
from pathlib import Path

import pytest

import tauten

ROOT = Path(tauten.__file__).parent
WAYS = {
    r"\.write_(text|bytes)\(": set[str](),
    r"""open\([^()\n]*["'][rwxab+]*[wxa+]""": {"core/files.py", "distributed/token.py"},
    r"os\.open\(": {
        *("core/files.py", "core/temporary.py"),
        *("distributed/token.py", "parallel/shared_file.py"),  # until Ray; memory, not a disk
    },
    r"shutil\.copy(file|tree|2|)\(": set[str](),
    r"save_file\(|np\.savez?\(|[^.]torch\.save\(": set[str](),
    r"tempfile\.(mkd|mks|Named|TemporaryD)": {
        "core/temporary.py",
        "parallel/pool.py",
    },  # inside one
    r"logging\.getLogger\(__name__\)\n": {"core/printing.py"},
}


@pytest.mark.parametrize("way", WAYS)
def test_no_other_way_is_gone(way: str) -> None:
    found = {
        file.relative_to(ROOT).as_posix()
        for file in ROOT.rglob("*.py")
        if re.search(way, file.read_text(encoding="utf-8"))
    }
    assert found <= WAYS[way]
