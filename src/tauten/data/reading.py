"""A user's data, read once for a call: text as documents, anything else as it is."""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from numpy import ndarray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from tauten.core.errors import InputError
from tauten.data.tensors import listed
from tauten.data.text_rows import LoadTokenizer, holds_text
from tauten.data.texts import Texts, read_texts
from tauten.models.source import Source, open_source
from tauten.models.tokenizers import with_tokenizer


@dataclass(frozen=True)
class UserData:
    """Data as a user passes it.

    Attributes:
        data: Text or tensor batches, as for `read_data`.
        tokenizer: As for `with_tokenizer`.
        text_column: As for `read_data`.
    """

    data: Any = None
    tokenizer: Any = None
    text_column: str | None = None

    def opened(self, model: Any, teacher: Source | None = None) -> tuple[Source, Any]:
        """The source of a model with its tokenizer, and the data, read.

        Args:
            model: As for `open_source`.
            teacher: Whose tokenizer serves where the model has none.
        """
        source = with_tokenizer(open_source(model), self.tokenizer)
        load = source.tokenizer or (None if teacher is None else teacher.tokenizer)
        return source, read_data(self.data, load, self.text_column)


def read_data(
    data: Any, load_tokenizer: LoadTokenizer = None, text_column: str | None = None
) -> Any:
    """Texts read, with a line in the log that says what; batches as they are given.

    Args:
        data: What a user passes.
        load_tokenizer: As for `read_texts`.
        text_column: Of rows, the one that is text; None to find it.
    Returns:
        `Texts`, or what `load_rows` reads.
    Raises:
        InputError: It is text that can't be read, or a column is named and there is no text.
    """
    if data is not None and not is_read_anew(data):
        data, is_text = listed(data)
    else:
        data, is_text = _peeked(data)
    if is_text:
        return read_texts(data, text_column, load_tokenizer)
    if text_column is not None:
        raise InputError(f"text_column={text_column!r}: the data isn't text with columns")
    return data


def texts_for(source: Source, data: Any) -> tuple[Texts, Any]:
    """Texts for a model, and the tokenizer that reads them.

    Args:
        source: Of the model.
        data: As for `read_texts`.
    Raises:
        InputError: The model has no tokenizer, or the data can't be read as text.
    """
    if source.tokenizer is None:
        raise InputError(
            f"{source.name} has no tokenizer, so it can't read text: pass tokenizer= (an object or "
            "a folder), the folder that holds model and tokenizer, or tensor batches as data"
        )
    return read_texts(data, None, source.tokenizer), source.tokenizer()


class _Begun:
    """An iterable whose first item was looked at: its first pass goes on from there."""

    def __init__(self, data: Iterable[Any], first: Any, rest: Iterator[Any]):
        self._data, self._begun = data, itertools.chain([first], rest)
        self._is_new = True

    def __iter__(self) -> Iterator[Any]:
        if not self._is_new:
            return iter(self._data)
        self._is_new = False
        return self._begun


def is_read_anew(data: Any) -> bool:
    """Whether each pass over data may give other batches, as those of an augmenting loader."""
    at_hand = isinstance(data, str | Sequence | Mapping | Tensor | ndarray | Dataset | Iterator)
    return isinstance(data, Iterable) and not at_hand and not hasattr(data, "columns")


def _peeked(data: Any) -> tuple[Any, bool]:
    """Data that is read anew, and whether it is text, which is listed."""
    if data is None or isinstance(data, DataLoader):
        return data, False
    rest = iter(data)
    for first in rest:
        begun = _Begun(data, first, rest)
        return (list(begun), True) if holds_text(first) else (begun, False)
    return [], False
