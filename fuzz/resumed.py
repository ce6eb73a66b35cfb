"""Readers of what a killed run has left: the same call goes on from it, and ends with the same."""

import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import tauten
from fuzz import models
from fuzz.commands import LOOSE
from fuzz.processes import End, run
from fuzz.reader import Reader
from fuzz.records import seal_journal
from tauten.models import training

OUT = "work/out"  # below the place of a reader
JOURNAL = f"{OUT}.partial/journal.jsonl"


def _pack(technique: Any, place: Path) -> None:
    training.CHECKPOINT_S = 0.0
    data, out = models.images(8), place / OUT
    tauten.quantize(models.network(), technique=technique, data=data, out=out, entropy_coding=True)


def _search(place: Path) -> None:
    goal, out = tauten.Goal(max_drop=0.3), place / OUT
    tauten.optimize(models.network(), models.images(), goal, out=out, effort="quick")


def _distill(place: Path) -> None:
    training.CHECKPOINT_S = 0.0
    knobs = {"steps": 6, "loss": "hidden"}
    data, out = models.images(4), place / OUT
    tauten.compress(models.network(), technique=tauten.Distill(**knobs), data=data, out=out)


def resumed_readers() -> Iterator[Reader]:
    """All of them; the search also as it is left half-way."""
    calls: dict[str, tuple[Callable[[Path], None], float]] = {
        "packing": (partial(_pack, tauten.GPTQ(4, 32)), 1.0),
        "training": (_distill, 0.8),
        "search": (_search, 1.0),
        "half a search": (_search, 0.5),
    }
    for name, (call, part) in calls.items():
        make, read = partial(_left, call, part), partial(_resume, call)
        yield Reader(f"resumed {name}", make, read, vouched=True)
        yield Reader(f"forged {name}", make, read, (JOURNAL,), seal=_seal)


def _seal(place: Path) -> None:
    seal_journal(place / JOURNAL)


def _left(call: Callable[[Path], None], part: float, place: Path) -> None:
    """What a run leaves that is killed after a part of its changes, or before the last of all."""
    whole = place.with_name(place.name + ".whole")
    for folder in (whole, place):
        for name in ("work", "tmp"):
            (folder / name).mkdir(parents=True)
    log = place.with_name(place.name + ".log")
    changes = run(partial(call, whole), whole, End(), log).changes
    end = End(rename_to=str(place / OUT)) if part == 1 else End(change=int(part * changes))
    run(partial(call, place), place, end, log)
    os.rmdir(place / "tmp")


def _resume(call: Callable[[Path], None], place: Path) -> Any:
    call(place)
    out = place / OUT
    files = (path for path in out.rglob("*") if path.is_file() and path.name not in LOOSE)
    return {str(path.relative_to(out)): path.read_bytes() for path in files}
