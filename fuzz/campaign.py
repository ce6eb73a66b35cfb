"""What both campaigns share: a budget in minutes dealt out alike, seeds, and where they stopped."""

import argparse
import json
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

FOUND = Path("fuzz") / "found"


def options(what: str) -> argparse.ArgumentParser:
    """Options of a campaign."""
    parser = argparse.ArgumentParser(description=what)
    parser.add_argument("--minutes", type=float, default=1.0, help="to take, about")
    parser.add_argument("--seed", type=int, default=0, help="of the campaign")
    parser.add_argument("--only", default="", help="names that begin so, separated by commas")
    parser.add_argument("--found", type=Path, default=FOUND, help="folder for what is found")
    parser.add_argument("--list", action="store_true", help="print the names, and do nothing")
    return parser


def chosen(names: Sequence[str], only: str) -> list[str]:
    """Names that begin as one of those that are asked for.

    Raises:
        SystemExit: None does.
    """
    found = [name for name in names if name.startswith(tuple(only.split(",")))]
    if not found:
        raise SystemExit(f"--only {only}: none of {', '.join(names)}")
    return found


class Numbers:
    """Which case of each name comes next, and what the cases before came to, kept in a file.

    Args:
        file: Of this campaign and all before it with the same seed.
        seed: Of them.
    """

    def __init__(self, file: Path, seed: int):
        self._file, self._seed = file, str(seed)
        self._all: dict[str, dict[str, Any]] = {}
        if file.exists():
            self._all = json.loads(file.read_text())
        self._own = self._all.setdefault(self._seed, {})

    def next(self, name: str) -> int:
        """Number of the case that wasn't done yet."""
        return int(self._own.get(name, {}).get("next", 0))

    def add(self, name: str, following: int, counts: dict[str, int]) -> None:
        """Say what some cases of a name came to, and which one follows."""
        held = self._own.setdefault(name, {"next": 0, "counts": {}})
        held["next"] = following
        held["counts"] = dict(Counter(held["counts"]) + Counter(counts))
        self._file.parent.mkdir(parents=True, exist_ok=True)
        self._file.write_text(json.dumps(self._all, indent=1))

    def total(self, name: str) -> dict[str, int]:
        """What all cases of a name came to."""
        return dict(self._own.get(name, {}).get("counts", {}))


def turns(names: list[str], minutes: float, slice_s: float) -> Iterator[tuple[str, float]]:
    """Names in turn and until when each may take, all the same time, until the minutes are over.

    Whoever goes on with it may take names out of the list.
    """
    end = time.monotonic() + 60 * minutes
    slice_s = min(slice_s, 60 * minutes / len(names))
    used = dict.fromkeys(names, 0.0)
    while names and time.monotonic() < end:
        name = min(names, key=used.__getitem__)
        start = time.monotonic()
        yield name, start + slice_s
        used[name] += time.monotonic() - start


def print_table(numbers: Numbers, names: Sequence[str], columns: Sequence[str]) -> int:
    """Print what came of each name, all campaigns of the seed together; the number of cases."""
    total: Counter[str] = Counter()
    print(f"{'':24}" + "".join(f"{column:>10}" for column in ("cases", *columns)))
    for name in names:
        counts = numbers.total(name)
        total.update(counts)
        _print_row(name, counts, columns)
    _print_row("all", total, columns)
    return total.total()


def _print_row(name: str, counts: dict[str, int], columns: Sequence[str]) -> None:
    cells = (sum(counts.values()), *(counts.get(column, 0) for column in columns))
    print(f"{name:24}" + "".join(f"{cell or '-':>10}" for cell in cells))
