"""The campaign of killed runs sees whatever a command leaves or makes otherwise."""

import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fuzz import kill
from fuzz.commands import Command
from fuzz.kill import Room
from fuzz.processes import End, run
from tauten.core.errors import BusyError
from tauten.core.files import write_text

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning"),
    pytest.mark.skipif(sys.platform != "linux", reason="processes are found in /proc"),
]
CASES = 12


def write() -> None:
    for name in "abc":
        write_text(Path(name), name * 100)


def write_carelessly() -> None:
    if Path("a").exists():
        return
    with Path("a").open("w") as opened:
        opened.write("one")
        opened.flush()
        os.fsync(opened.fileno())
        opened.write("two")


def append() -> None:
    with Path("log").open("a") as opened:
        opened.write("once")
    os.mkdir("done")


def write_beside() -> None:
    name = Path(os.environ["TMPDIR"], f"tauten-{os.getpid()}")
    name.write_text("")
    write()
    name.unlink()


def fail_again() -> None:
    if Path("started").exists():
        raise BusyError("started")
    Path("started").write_text("")
    Path("started").unlink()


def start_another() -> None:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    write()
    child.kill()
    child.wait()


def alone(call: Callable[[], Any]) -> Any:
    """What a call returns in a fork: workers of other tests are no processes of its own there."""
    receiving, sending = os.pipe()
    pid = os.fork()
    if pid == 0:
        with os.fdopen(sending, "wb") as pipe:
            try:
                answer = call()
            except BaseException as error:
                answer = error
            pipe.write(pickle.dumps(answer))
        os._exit(0)
    os.close(sending)
    with os.fdopen(receiving, "rb") as pipe:
        answer = pickle.loads(pipe.read())
    os.waitpid(pid, 0)
    if isinstance(answer, BaseException):
        raise answer
    return answer


def faults(call: Callable[[], None], folder: Path) -> set[str]:
    """Of some cases; numbers of processes don't count."""
    folder.mkdir()
    found = [said for _, said in cases(call, folder)]
    return {fault.rstrip("0123456789") for said in found for fault in said}


def cases(call: Callable[[], None], folder: Path) -> list[tuple[int, list[str]]]:
    def all_of_them() -> Any:
        room, command = Room(folder), Command("planted", call)
        return [room.case(command, 0, number, folder / "found") for number in range(CASES)]

    return alone(all_of_them)


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (write, set()),
        (write_carelessly, {"differs: a"}),
        (append, {"differs: log"}),
        (write_beside, {"left in tmp: tauten-"}),
        (fail_again, {"called again it ends with exit code ", "left: started"}),
    ],
)
def test_what_a_command_does_wrong_is_seen(
    tmp_path: Path, call: Callable[[], None], expected: set[str]
) -> None:
    assert faults(call, tmp_path / "room") == expected


def test_a_process_that_is_left_is_seen_and_ended(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(kill, "PATIENCE_S", 0.1)
    found = faults(start_another, tmp_path / "room")
    assert found and all(fault.startswith("left running: ") for fault in found)
    assert all("sleep(600)" in fault for fault in found)


def test_a_fault_of_an_undisturbed_run_is_seen(tmp_path: Path) -> None:
    def leave() -> None:
        Path(os.environ["TMPDIR"], "a").write_text("")
        sys.exit(3)

    faults = alone(lambda: Room(tmp_path).undisturbed(Command("planted", leave)).faults)
    assert faults[:2] == ["called again it ends with exit code 3", "left in tmp: a"]


def test_a_bad_case_is_kept(tmp_path: Path) -> None:
    bad = [number for number, (_, said) in enumerate(cases(append, tmp_path)) if said]
    kept = {path.name for path in (tmp_path / "found").iterdir()}
    assert kept == {f"kill-planted-0-{number}" for number in bad}


def change_everything() -> None:
    with open("a", "w") as opened:
        opened.write("content")
        opened.flush()
        os.fsync(opened.fileno())
    os.mkdir("b")
    os.rename("a", "b/a")
    shutil.rmtree("b")


@pytest.mark.parametrize(
    ("change", "left"),
    [
        *((1, []), (2, ["a"]), (3, ["a"]), (4, ["a", "b"])),
        *((5, ["b", "b/a"]), (6, ["b"]), (7, [])),
    ],
)
def test_a_process_is_killed_before_a_change(tmp_path: Path, change: int, left: list[str]) -> None:
    for name in ("work", "tmp"):
        (tmp_path / name).mkdir()
    log, work = tmp_path / "log", tmp_path / "work"
    ended = alone(lambda: run(change_everything, tmp_path, End(change=change), log))
    assert ended.code == (-signal.SIGKILL if change <= 6 else 0)
    assert ended.changes == min(change, 6)
    assert sorted(str(path.relative_to(work)) for path in work.rglob("*")) == left


def test_a_process_is_killed_after_a_time(tmp_path: Path) -> None:
    for name in ("work", "tmp"):
        (tmp_path / name).mkdir()
    end = End(after_s=0.1)
    ended = alone(lambda: run(lambda: time.sleep(60), tmp_path, end, tmp_path / "log"))
    assert ended.code == -signal.SIGKILL and ended.seconds < 30
