"""Kill every long command anywhere, and look at what it ends with: `python -m fuzz.kill`.

A killed command is called again, once or after further kills, until it ends. Then its folder must
be that of an undisturbed run, byte for byte, and nothing else may be left: no file, no temporary
folder, no memory, no process.
"""

import logging
import shutil
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import torch

from fuzz.campaign import Numbers, chosen, options, print_table, turns
from fuzz.commands import LOOSE, Command, all_commands, make_inputs, steady
from fuzz.processes import REFUSED, End, Ended, run, wait_for_orphans

ROOMS = ("tmp", "memory")  # that nothing may be left in
COLUMNS = ("kills", "same", "bad")
PATIENCE_S = 60.0  # for processes that a killed one has left to end: they may be importing torch


@dataclass(frozen=True)
class Undisturbed:
    """A run to the end: its files, how it ended, and what was wrong already."""

    files: dict[str, bytes]
    ended: Ended
    faults: list[str] = field(default_factory=list)


def main() -> int:
    """Run a campaign, or a case of it; the exit code says whether anything was found."""
    parser = options(__doc__.partition("\n")[0])
    parser.add_argument("--case", help="such as 'gptq 0 17': a command, the seed, a number")
    given = parser.parse_args()
    commands = all_commands()
    names = chosen(list(commands), given.only)
    if given.list:
        print(*names, sep="\n")
        return 0
    torch.set_num_threads(1)
    logging.getLogger("tauten").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        room = Room(Path(folder).resolve())
        make_inputs(Path(folder, "inputs"))
        steady(room.memory)
        if given.case:
            name, seed, number = given.case.rsplit(" ", 2)
            faults = room.case(commands[name], int(seed), int(number), given.found)[1]
            print(*faults or ["the same, and nothing left"], sep="\n")
            return 1 if faults else 0
        print(f"seed {given.seed}, {given.minutes:g} minutes, {len(names)} commands")
        numbers, bad = Numbers(given.found / "kill.json", given.seed), 0
        able = list(names)
        for name, _ in turns(able, given.minutes, 0.0):
            number = numbers.next(name)
            if said := room.undisturbed(commands[name]).faults:
                print(f"{name}, undisturbed: {said}")
                able.remove(name)
                bad += 1
                continue
            kills, faults = room.case(commands[name], given.seed, number, given.found)
            counts = {"kills": kills, "bad" if faults else "same": 1}
            numbers.add(name, number + 1, counts)
            bad += bool(faults)
            for fault in faults:
                print(f"{name} {number}: {fault}")
            if faults:
                print(f"  again: python -m fuzz.kill --case '{name} {given.seed} {number}'")
    print_table(numbers, names, COLUMNS)
    print(f"{bad} cases with a fault; go on: --seed {given.seed}")
    return 1 if bad else 0


class Room:
    """A folder in which commands are run.

    Args:
        folder: Empty, absolute.
    """

    def __init__(self, folder: Path):
        self._whole: dict[str, Undisturbed] = {}
        self._place = folder / "case"

    @property
    def memory(self) -> Path:
        """In the place of the memory that all processes of a machine share."""
        return self._place / "memory"

    def case(self, command: Command, seed: int, number: int, found: Path) -> tuple[int, list[str]]:
        """How often a command was killed, and what was wrong in the end."""
        whole = self.undisturbed(command)
        random, place = Random(f"{seed} {command.name} {number}"), self._prepared(command)
        log, kills, faults = place / "log", 0, list[str]()
        for _ in range(random.choice((1, 1, 1, 2, 3))):
            last = run(command.run, place, _end(random, whole.ended), log)
            if last.code >= 0:
                break
            kills += 1
            if random.random() < 0.5:
                faults += _left_running()
        else:
            last = run(command.run, place, End(), log)
        faults += self._faults(place, whole, last)
        if faults:
            kept = found / f"kill {command.name} {seed} {number}".replace(" ", "-")
            shutil.rmtree(kept, ignore_errors=True)
            shutil.copytree(place, kept, symlinks=True)
        shutil.rmtree(place)
        return kills, faults

    def undisturbed(self, command: Command) -> Undisturbed:
        """A run that isn't killed; the first is remembered."""
        if command.name not in self._whole:
            place = self._prepared(command)
            ended = run(command.run, place, End(), place / "log")
            whole = Undisturbed(_files(place / "work"), ended)
            whole.faults.extend(self._faults(place, whole, ended))
            if whole.faults:
                whole.faults.append((place / "log").read_text(errors="replace"))
            shutil.rmtree(place)
            self._whole[command.name] = whole
        return self._whole[command.name]

    def _prepared(self, command: Command) -> Path:
        for name in ("work", *ROOMS):
            (self._place / name).mkdir(parents=True)
        command.prepare(self._place / "work")
        return self._place

    def _faults(self, place: Path, whole: Undisturbed, last: Ended) -> list[str]:
        faults = _left_running()
        files = _files(place / "work")
        if last.code != 0 and not (last.code == REFUSED and files == whole.files):
            faults.append(f"called again it ends with exit code {last.code}")
        both = sorted(files.keys() & whole.files.keys())
        faults += [f"missing: {name}" for name in sorted(whole.files.keys() - files.keys())]
        faults += [f"left: {name}" for name in sorted(files.keys() - whole.files.keys())]
        faults += [f"differs: {name}" for name in both if files[name] != whole.files[name]]
        for room in ROOMS:
            faults += [f"left in {room}: {path.name}" for path in sorted((place / room).iterdir())]
        return faults


def _left_running() -> list[str]:
    return [f"left running: {process}" for process in wait_for_orphans(PATIENCE_S)]


def _end(random: Random, whole: Ended) -> End:
    """Where to kill: most often at a change of a file, else at any time."""
    family = random.random() < 0.3
    if random.random() < 0.7 and whole.changes:
        return End(change=random.randint(1, whole.changes), family=family)
    return End(after_s=random.uniform(0.0, whole.seconds), family=family)


def _files(folder: Path) -> dict[str, bytes]:
    """Files below a folder, and folders that are empty.

    What is measured has no content here, and the lines of a journal come in order: workers end
    their work as it happens.
    """
    found: dict[str, bytes] = {}
    for path in folder.rglob("*"):
        name = str(path.relative_to(folder))
        if path.is_file():
            content = b"" if path.name in LOOSE else path.read_bytes()
            is_journal = path.suffix == ".jsonl"
            found[name] = b"".join(sorted(content.splitlines(True))) if is_journal else content
        elif not any(path.iterdir()):
            found[name + "/"] = b""
    return found


if __name__ == "__main__":
    sys.exit(main())
