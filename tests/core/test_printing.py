"""Names from files can't move a terminal's cursor, forge a line, or turn what follows around."""

import io
import logging
import pickle
import re

import pytest
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from tauten.core.console import SafeConsole
from tauten.core.errors import CorruptError
from tauten.core.printing import logger, printable

EVIL = "a\x1b[31m\x9b2J\x07\r\x7f\u202egnp.\u2066\udcff[/bold]:warning:"
SHOWN = r"a\x1b[31m\x9b2J\x07\r\x7f\u202egnp.\u2066\udcff[/bold]:warning:"


def test_control_characters_are_written_out() -> None:
    assert printable(EVIL) == SHOWN
    for text in ("Grüße, \u2713 \u65e5\u672c\n\t\U0001f600", "", "plain"):
        assert printable(text) == text


def test_errors_are_printable_here_and_in_other_processes() -> None:
    error = CorruptError(f"{EVIL}: damaged")
    assert str(error) == f"{SHOWN}: damaged"
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is CorruptError and str(again) == str(error)


def test_logs_are_printable_lines(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "tauten"):
        logger("tauten.some").info("%s: not\n%s", EVIL, "error: forged")
    assert [record.getMessage() for record in caplog.records] == [SHOWN + r": not\nerror: forged"]


@pytest.mark.parametrize("terminal", [False, True])
def test_the_console_prints_names_as_they_are_written(terminal: bool) -> None:
    shown = io.StringIO()
    console = SafeConsole(
        file=shown,
        force_terminal=terminal,
        width=200,
        color_system="standard" if terminal else None,
    )
    table = Table(EVIL, title=EVIL)
    table.add_row(Text(EVIL, "red"))
    console.print(EVIL, Panel(EVIL, title=Text(EVIL)), table, Text.assemble((EVIL, "bold")))
    said = re.sub(r"\x1b\[[0-9;]*m" if terminal else "$^", "", shown.getvalue())  # rich's own
    whole = SHOWN.replace(r"\x07\r", "")  # which rich leaves out
    assert printable(said) == said and said.count(r"a\x1b[31m") == 7
    assert said.splitlines()[0] == said.splitlines()[-1] == whole
