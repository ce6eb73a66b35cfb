"""Text from files and models as a terminal or a page can show it, whatever is in it."""

import logging
import re

# C0 without tab and newline, C1, marks and overrides of direction, separators, lone surrogates.
_HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)


def printable(text: str) -> str:
    """Text with its control characters written out, such as `\\x1b`; tabs and newlines stay.

    The name of a layer or file may hold what moves a terminal's cursor, rewrites lines before it,
    turns the direction of what follows, or can't be encoded.
    """
    return _HIDDEN.sub(lambda found: ascii(found[0])[1:-1], text)


def logger(name: str) -> logging.Logger:
    """The logger of a module; what it says is printable and one line, whatever names are in it."""
    made = logging.getLogger(name)
    made.addFilter(_printable_line)
    return made


def _printable_line(record: logging.LogRecord) -> bool:
    record.msg, record.args = printable(record.getMessage()).replace("\n", "\\n"), ()
    return True
