"""The command on consoles that don't know what a model writes, and when it is told to stop."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

COMMAND = """
import sys, tempfile, time
import tauten.cli as cli

def speak() -> None:
    print("Gr\\u00fc\\u00dfe, \\u2713 \\ufffd")

def wait() -> None:
    with tempfile.TemporaryDirectory(prefix="tauten-"):
        print("begun", flush=True)
        time.sleep(600)

cli.command(speak)
cli.command(wait)
cli.main()
"""


def started(tmp_path: Path, name: str, **environment: str) -> subprocess.Popen[bytes]:
    env = {**os.environ, "TMPDIR": str(tmp_path), **environment}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([sys.executable, "-c", COMMAND, name], env=env, **pipes)


@pytest.mark.parametrize(
    ("encoding", "shown"), [("ascii", b"Gr??e, ? ?"), ("latin-1", b"Gr\xfc\xdfe, ? ?")]
)
def test_what_a_console_cant_show_is_replaced(tmp_path: Path, encoding: str, shown: bytes) -> None:
    process = started(tmp_path, "speak", PYTHONIOENCODING=encoding)
    out, said = process.communicate()
    assert process.returncode == 0, said
    assert out.strip() == shown


@pytest.mark.skipif(os.name != "posix", reason="Windows ends processes without a signal")
def test_a_command_that_is_told_to_end_leaves_nothing_behind(tmp_path: Path) -> None:
    process = started(tmp_path, "wait")
    assert process.stdout is not None and process.stdout.readline().strip() == b"begun"
    assert list(tmp_path.glob("tauten-*"))
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate()
    assert process.returncode == 128 + signal.SIGTERM
    assert said.strip() == b"stopped; the same command goes on from here"
    assert not list(tmp_path.glob("tauten-*"))
