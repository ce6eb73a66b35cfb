"""The text of rows, be they of JSON, of a table or in memory: one column of them, or a chat."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

from tauten.core.errors import InputError, first_line

LoadTokenizer = Callable[[], Any] | None
SCALARS = (str, bool, int, float, type(None))  # what may stand beside texts or tensors in a row
_TEXT, _CHATS = "text", ("messages", "conversations")


class RowTexts:
    """Takes the text out of rows of one kind.

    The first row decides which column is read: the one that is named, else `text`, else a chat,
    else the only one that is text and no number.

    Args:
        column: The name of the column; None for none.
        load_tokenizer: Gives the tokenizer whose template makes texts of chats; None for none.
    Attributes:
        column: That is read; None before the first row, and where rows have no columns.
    """

    def __init__(self, column: str | None = None, load_tokenizer: LoadTokenizer = None):
        self.column, self._load = column, load_tokenizer

    @functools.cached_property
    def _tokenizer(self) -> Any:
        return None if self._load is None else self._load()

    def text(self, place: str, row: Any) -> str:
        """The text of a row.

        Args:
            place: Of the row, for messages.
            row: A string, a chat, or a mapping that holds one.
        Raises:
            InputError: It holds none, or several of which none is named.
        """
        if isinstance(row, str) and self.column is None:
            return row
        if is_chat(row):
            return self._of_chat(place, row)
        if not isinstance(row, Mapping):
            kind = type(row).__name__
            raise InputError(f"{place}: is a {kind}; expected a string, a chat or a row")
        self.column = self.column or _only_text(row)
        if self.column not in row:
            names = ", ".join(map(str, row)) or "nothing"
            wanted = self.column or "text"
            raise InputError(
                f"{place}: expected a field `{wanted}`; the row has {names}: "
                "pass text_column= (--text-column) with the name of the one to read"
            )
        value = row[self.column]
        if value is None:  # a row without text is left out, and counted
            return ""
        if is_chat(value):
            return self._of_chat(place, value)
        if not isinstance(value, str):
            kind = type(value).__name__
            raise InputError(f"{place}: `{self.column}` is a {kind}; expected a string or a chat")
        return value

    def _of_chat(self, place: str, messages: list[Any]) -> str:
        if getattr(self._tokenizer, "chat_template", None) is None:
            raise InputError(
                f"{place}: is a chat, and the model's tokenizer has no chat template: "
                "pass texts, or tokenizer= with one that has"
            )
        try:
            return str(self._tokenizer.apply_chat_template(messages, tokenize=False))
        except Exception as error:  # a template is a program that came with the model
            raise InputError(
                f"{place}: the chat template refuses it ({first_line(error)})"
            ) from error


def is_chat(value: Any) -> bool:
    """Whether a value is a list of messages, each of a role and a content."""
    return isinstance(value, list) and bool(value) and all(map(_is_message, value))


def holds_text(row: Any) -> bool:
    """Whether an item of data is text: a string, a chat, or columns of which none is of numbers."""
    if isinstance(row, Mapping):
        values = list(row.values())
        return any(isinstance(v, str) or is_chat(v) for v in values) and all(
            isinstance(v, SCALARS) or is_chat(v) for v in values
        )
    return isinstance(row, str) or is_chat(row)


def _is_message(value: Any) -> bool:
    return isinstance(value, Mapping) and "role" in value and "content" in value


def _only_text(row: Mapping[str, Any]) -> str | None:
    """The column to read where none is named, None where several might be meant."""
    if _TEXT in row:
        return _TEXT
    chats = [name for name in _CHATS if is_chat(row.get(name))]
    texts = [key for key, v in row.items() if isinstance(v, str) and not _is_number(v)]
    found = chats or texts
    return found[0] if len(found) == 1 else None


def _is_number(text: str) -> bool:
    try:
        float(text or "0")  # nor is an empty cell
    except ValueError:
        return False
    return True
