"""Damage files of every kind, a million in an hour: `python -m fuzz.run --minutes 60 --seed 1`.

What is found is kept, once for each kind, with the command that repeats it.
"""

import json
import logging
import os
import sys
import tempfile
import time
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch

from fuzz.campaign import Numbers, chosen, options, print_table, turns
from fuzz.child import BAD, VERDICTS, Batch, Damaged, Finding, UnreadableError, by_seed, read_many
from fuzz.reader import Reader
from fuzz.readers import all_readers

SLICE_S = 5.0
MOST = 20_000  # cases of a process: what it has cached and leaked counts as memory of the next


def main() -> int:
    """Run a campaign, or repeat a case; the exit code says whether anything was found."""
    parser = options(__doc__.partition("\n")[0])
    parser.add_argument("--again", type=Path, help="a folder below --found: read it once more")
    given = parser.parse_args()
    quiet()
    readers = all_readers()
    if given.again:
        return again(readers, given.again)
    names = chosen(list(readers), given.only)
    if given.list:
        print(*names, sep="\n")
        return 0
    print(f"seed {given.seed}, {given.minutes:g} minutes, {len(names)} readers")
    numbers = Numbers(given.found / "read.json", given.seed)
    kinds: set[str] = set()
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        inputs: dict[str, dict[str, bytes]] = {}
        able = list(names)
        for name, until in turns(able, given.minutes, SLICE_S):
            place, reader = Path(folder, name.replace(" ", "-")), readers[name]
            if name not in inputs:
                inputs[name] = make(reader, place)
            until = max(until, time.monotonic() + 0.2)  # making the input may have taken all of it
            damaged = partial(by_seed, reader, inputs[name], given.seed)
            first = numbers.next(name)
            batch = Batch(reader, place, inputs[name], damaged, first, until, MOST)
            try:
                progress, found = read_many(batch)
            except UnreadableError as error:
                print(error)
                kinds.add(name)
                able.remove(name)
                continue
            numbers.add(name, progress.number + 1, progress.counts)
            for finding in found:
                keep(finding, given.seed, inputs[name], given.found, kinds)
    total = print_table(numbers, names, VERDICTS)
    print(f"{total} files; {len(kinds)} kinds of findings; go on: --seed {given.seed}")
    return 1 if kinds else 0


def quiet() -> None:
    """Nothing but the table is printed, and nothing runs on other threads."""
    logging.disable(logging.CRITICAL)
    torch.set_num_threads(1)


def make(reader: Reader, place: Path) -> dict[str, bytes]:
    """An undamaged input: its files by name."""
    log = place.with_name(place.name + ".made")
    with log.open("w") as opened, _printing_to(opened.fileno()):
        reader.make(place)
    files = (path for path in place.rglob("*") if path.is_file())
    return {str(path.relative_to(place)): path.read_bytes() for path in files}


class _printing_to:
    """What is printed in this block goes to a file."""

    def __init__(self, descriptor: int):
        self._file = descriptor

    def __enter__(self) -> None:
        sys.stdout.flush()
        self._kept = os.dup(1), os.dup(2)
        os.dup2(self._file, 1)
        os.dup2(self._file, 2)

    def __exit__(self, *_: object) -> None:
        sys.stdout.flush()
        for stream, kept in zip((1, 2), self._kept, strict=True):
            os.dup2(kept, stream)
            os.close(kept)


def keep(
    finding: Finding, seed: int, whole: dict[str, bytes], found: Path, kinds: set[str]
) -> None:
    """Keep a finding in a folder, if it is the first of its kind, and print how to repeat it."""
    kind = f"{finding.reader}: {finding.kind}"
    if kind in kinds:
        return
    kinds.add(kind)
    folder = found / f"{finding.reader} {seed} {finding.number}".replace(" ", "-")
    for file, content in whole.items():
        path = folder / "input" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    (folder / "case.json").write_text(json.dumps(asdict(finding), indent=1))
    end = (finding.said.strip().splitlines() or [""])[-1]
    print(f"{kind}\n  {finding.file}: {finding.damage}; {end[:300]}")
    print(f"  again: python -m fuzz.run --again {folder}", flush=True)


def again(readers: dict[str, Reader], folder: Path) -> int:
    """Read a kept case once more, and print what comes of it."""
    kept = Finding(**json.loads((folder / "case.json").read_text()))
    files = (path for path in (folder / "input").rglob("*") if path.is_file())
    whole = {str(path.relative_to(folder / "input")): path.read_bytes() for path in files}
    content = None if kept.content is None else bytes.fromhex(kept.content)
    done = Damaged(kept.number, kept.file, content, kept.damage)
    with tempfile.TemporaryDirectory(prefix="fuzz-") as place:
        where = Path(place, "input")
        one = Batch(readers[kept.reader], where, whole, lambda _: done, 0, reported=VERDICTS)
        now = read_many(one)[1][0]
    print(now.said, f"{kept.file}: {kept.damage}", now.kind, sep="\n")
    return 1 if now.verdict in BAD else 0


if __name__ == "__main__":
    sys.exit(main())
