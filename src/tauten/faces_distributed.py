"""What the command line does on many machines: start commands there, show who is there."""

import os
import subprocess
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from tauten.core.errors import InputError
from tauten.distributed.launch import Launch
from tauten.distributed.start import Access, open_engine
from tauten.distributed.status import reports


def parse_workers(text: str | None) -> int | str | None:
    """A number of processes, or the name of a cluster, as typed."""
    return int(text) if text is not None and text.isdigit() else text


def run_launch(launch: Launch, console: Console, dry: bool) -> None:
    """Run a command, or print it."""
    words = [f"{name}={value}" for name, value in launch.environment.items()]
    if dry:
        console.print(" ".join([*words, *launch.command]), soft_wrap=True, highlight=False)
        return
    try:
        code = subprocess.call(launch.command, env={**os.environ, **launch.environment})
    except FileNotFoundError:
        name = launch.command[0]
        raise InputError(f"{name} isn't installed here: pip install 'tauten[{name}]'") from None
    raise SystemExit(code)


def print_status(
    cluster: str | None,
    interface: str | None,
    token: Path | None,
    shell: str | None,
    console: Console,
) -> None:
    """Ask all workers of a cluster what they are."""
    given = {"interface": interface, "token": token and str(token), "shell": shell}
    known = vars(Access.from_environment())
    access = Access(**{**known, **{key: value for key, value in given.items() if value}})
    engine = open_engine(cluster, None, access)
    try:
        found = reports(engine)
    finally:
        engine.close()
    table = Table("worker", "host", "cores", "GPUs", "memory", "torch", "tauten", "answer")
    for name, facts in sorted(found.items()):
        if "error" in facts:
            table.add_row(name, Text(facts["error"].splitlines()[0], "red"))
            continue
        memory = f"{facts['memory_bytes'] / 2**30:.0f} GiB"
        answer = f"{facts['answer_s'] * 1e3:.0f} ms"
        counts = (str(facts["cores"]), str(facts["gpus"]))
        table.add_row(name, facts["host"], *counts, memory, facts["torch"], facts["tauten"], answer)
    console.print(table)
    if not found or any("error" in facts for facts in found.values()):
        raise InputError("some workers are missing")
