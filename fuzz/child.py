"""Read damaged files in a process of its own, within limits, and judge what comes of each.

One process reads many: it is forked with everything imported, and says in shared memory how far it
is. If it dies there, that is the verdict.
"""

import faulthandler
import json
import math
import mmap
import os
import signal
import struct
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Any, TextIO

from fuzz.limits import TIMED, end_in, lacks_memory, limit_memory, peak_bytes
from fuzz.mutate import mutate
from fuzz.reader import Reader
from tauten.core.errors import TautenError

# same: as without damage. other: another value, where no digest says which was meant.
GOOD = ("same", "refused", "other")
# silent: another value, though digests cover the file. foreign: an error of no class of ours.
BAD = ("silent", "foreign", "crash", "hang", "memory")
VERDICTS = (*GOOD, *BAD)
_STATE = struct.Struct(f"<{1 + len(VERDICTS)}q")  # the case that is read; how many had each verdict
_FORMS = {
    ".json": "json",
    ".jsonl": "lines",
    ".yaml": "yaml",
    ".safetensors": "safetensors",
    **dict.fromkeys((".jinja", ".txt", ".csv", ".tsv", ".md", ".hosts"), "text"),
}


@dataclass(frozen=True)
class Damaged:
    """A file that isn't what it was.

    Attributes:
        number: Of the case, in a campaign of a reader.
        file: Its name.
        content: What it holds now; None if it is gone.
        damage: What was done to it.
    """

    number: int
    file: str
    content: bytes | None
    damage: str


@dataclass(frozen=True)
class Finding:
    """A damaged file and its verdict.

    Attributes:
        said: The error, or how the process ended.
        kind: Findings of one kind have one cause.
        content: As of `Damaged`, in hexadecimal.
    """

    reader: str
    number: int
    file: str
    content: str | None
    damage: str
    verdict: str
    said: str
    kind: str

    @classmethod
    def of(cls, reader: Reader, done: Damaged, verdict: str, said: str, kind: str) -> "Finding":
        """What a damaged file came to."""
        content = None if done.content is None else done.content.hex()
        judged = (verdict, said[-5000:], f"{verdict}: {kind}")
        return cls(reader.name, done.number, done.file, content, done.damage, *judged)


@dataclass(frozen=True)
class Batch:
    """Files that one process reads, one after the other.

    Attributes:
        reader: Of them.
        place: A folder for it to work in.
        whole: What the files are undamaged, by name.
        damaged: Gives the case of a number.
        first: Number of the first case.
        until: Time, as of `time.monotonic`, at which it ends.
        most: Number of cases at which it ends.
        reported: Verdicts that are worth a finding, the first of each kind.
    """

    reader: Reader
    place: Path
    whole: dict[str, bytes]
    damaged: Callable[[int], Damaged]
    first: int
    until: float = math.inf
    most: int = 1
    reported: tuple[str, ...] = BAD


class UnreadableError(Exception):
    """A reader can't read its input as it was made."""


class Progress:
    """Memory that a child shares with its parent."""

    def __init__(self) -> None:
        self._map = mmap.mmap(-1, _STATE.size)
        self.number, self.counts = -1, dict.fromkeys(VERDICTS, 0)

    def save(self) -> None:
        """Show the parent."""
        _STATE.pack_into(self._map, 0, self.number, *self.counts.values())

    def load(self) -> None:
        """Look at what the child has shown."""
        self.number, *counts = _STATE.unpack_from(self._map)
        self.counts = dict(zip(VERDICTS, counts, strict=True))


def by_seed(reader: Reader, whole: dict[str, bytes], seed: int, number: int) -> Damaged:
    """A case of a campaign."""
    random = Random(f"{seed} {reader.name} {number}")
    file = random.choice(reader.damaged_names(whole))
    if len(whole) > 1 and random.random() < 0.003:
        return Damaged(number, file, None, "gone")
    if not whole[file]:
        return Damaged(number, file, b"\0", "extend")
    form = _FORMS.get(Path(file).suffix, "bytes")
    return Damaged(number, file, *mutate(whole[file], form, random))


def read_many(batch: Batch) -> tuple[Progress, list[Finding]]:
    """Read damaged files in a child; how far it came, and what is worth a finding."""
    progress, log = Progress(), batch.place.with_name(batch.place.name + ".log")
    progress.number = batch.first - 1
    progress.save()
    receiving, sending = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(receiving)
        _child(batch, progress, sending, log)
    os.close(sending)
    with open(receiving) as pipe:
        found = [Finding(**json.loads(line)) for line in pipe]
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    progress.load()
    if code:
        said = log.read_text(errors="replace")
        if progress.number < batch.first:
            raise UnreadableError(
                f"{batch.reader.name}: undamaged it can't be read ({code}):\n{said}"
            )
        verdict = "hang" if -code in TIMED else "crash"
        progress.counts[verdict] += 1
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        done = batch.damaged(progress.number)
        kind = f"{how} by {done.file}"
        found.append(Finding.of(batch.reader, done, verdict, f"{said}\n{how}", kind))
    return progress, found


def _child(batch: Batch, progress: Progress, sending: int, log: Path) -> None:
    """What the child does."""
    code, said = 1, log.open("w")
    print_to(said)
    try:
        with open(sending, "w") as pipe:
            _read_all(batch, progress, pipe)
        code = 0
    except BaseException:
        traceback.print_exc()  # for the parent
    finally:
        said.flush()
        os._exit(code)


def print_to(file: TextIO) -> None:
    """Have all that this process prints go to a file, by whatever library."""
    os.dup2(file.fileno(), 1)
    os.dup2(file.fileno(), 2)
    sys.stdout = sys.stderr = file


def _read_all(batch: Batch, progress: Progress, pipe: TextIO) -> None:
    warnings.simplefilter("ignore")
    faulthandler.enable()
    for number in TIMED:  # says where it hangs, and ends it
        faulthandler.register(number, chain=True)
    lay_out(batch.place, batch.whole)
    expected = batch.reader.read(batch.place)
    allowed, kinds = limit_memory(max(map(len, batch.whole.values()))), set[str]()
    for number in range(batch.first, batch.first + batch.most):
        lay_out(batch.place, batch.whole)
        done = batch.damaged(number)
        write(batch.place, done.file, done.content)
        if batch.reader.seal is not None:
            batch.reader.seal(batch.place)
        progress.number = number
        progress.save()
        verdict, said, kind = judged(batch.reader, batch.place, expected, done.file, allowed)
        progress.counts[verdict] += 1
        progress.save()
        finding = Finding.of(batch.reader, done, verdict, said, kind)
        if verdict in batch.reported and finding.kind not in kinds:
            kinds.add(finding.kind)
            pipe.write(json.dumps(asdict(finding)) + "\n")
            pipe.flush()  # the next case may be the last
        if time.monotonic() > batch.until or verdict == "memory":  # its peak would hide the next
            break


def lay_out(place: Path, whole: dict[str, bytes]) -> None:
    """Make a folder hold just these files."""
    for path in sorted(place.rglob("*"), reverse=True):  # what is inside of a folder comes first
        if path.is_symlink() or path.is_file():
            if str(path.relative_to(place)) not in whole:
                path.unlink()
        elif not any(path.iterdir()):
            path.rmdir()
    for name, content in whole.items():
        path = place / name
        if not path.exists() or path.read_bytes() != content:
            write(place, name, content)


def write(place: Path, name: str, content: bytes | None) -> None:
    """Write a file, or remove it."""
    path = place / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    if content is not None:
        path.write_bytes(content)


def judged(
    reader: Reader, place: Path, expected: Any, file: str, allowed: int
) -> tuple[str, str, str]:
    """Verdict of a file, what was said, and the kind of finding."""
    end_in()
    verdict, said, kind = "same", "", file
    try:
        seen = reader.read(place)
    except BaseException as error:  # whatever it is, it is what is looked for
        said = traceback.format_exc()
        verdict = "refused" if isinstance(error, TautenError) else "foreign"
        if lacks_memory(error):
            verdict = "memory"
        kind = f"{type(error).__name__} at {_raised_at(error)}"
    else:
        if not reader.same(seen, expected):
            verdict = "silent" if reader.vouched else "other"
    finally:
        end_in(0)
    if peak_bytes() > allowed:
        verdict, said = "memory", f"peak of {peak_bytes()} bytes, {allowed} allowed\n{said}"
    return verdict, said, kind


def _raised_at(error: BaseException) -> str:
    """The last line of ours that an error came through."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [f for f in frames if "tauten" in f.filename and "site-packages" not in f.filename]
    if not ours:
        return "no line of tauten"
    name = ours[-1].filename.rpartition("tauten/")[2]
    return f"{name}:{ours[-1].name}"
