"""One call of a model on calibration data, and what it raises where the data doesn't fit."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from tauten.core.errors import InputError, first_line
from tauten.core.rows import count_rows, cut_rows

PROBE_TOKENS = 32
# What models and torch raise for tensors that don't fit.
MISFITS = (
    *(RuntimeError, LookupError, TypeError, AttributeError, ValueError),
    *(AssertionError, ArithmeticError, StopIteration),
)


@dataclass(frozen=True)
class CalibrationBatch:
    """One call of the model.

    Attributes:
        args: Positional arguments.
        kwargs: The others.
        mask: (rows, length) bool, False where a token is padding; None where all count.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    mask: Tensor | None = None

    @property
    def rows(self) -> int:
        """Examples in the batch; see `core.rows`."""
        try:
            return count_rows(vars(self))
        except InputError:  # it holds no tensors
            return 1

    def call(self, model: Callable[..., Any]) -> Any:
        """What a model answers; it may write into dicts, as those of sentence-transformers do."""
        args = (dict(arg) if isinstance(arg, dict) else arg for arg in self.args)
        return model(*args, **self.kwargs)

    def split(self, rows: int) -> "list[CalibrationBatch]":
        """The same examples in batches of at most `rows`."""
        if self.rows == 1:
            return [self]
        sizes = [min(rows, self.rows - start) for start in range(0, self.rows, rows)]
        return [CalibrationBatch(**fields) for fields in cut_rows(vars(self), sizes)]


def first_tokens(batch: CalibrationBatch) -> CalibrationBatch:
    """The beginning of a batch of tokens; any other batch, or one padded there, as it is."""
    tensors = [v for v in (*batch.args, *batch.kwargs.values()) if isinstance(v, Tensor)]
    padded = batch.mask is not None and not bool(batch.mask[:1, :PROBE_TOKENS].all())
    if padded or any(t.dim() != 2 or t.is_floating_point() for t in tensors):
        return batch

    def cut(value: Any) -> Any:
        return value[:1, :PROBE_TOKENS] if isinstance(value, Tensor) else value

    kwargs = {key: cut(value) for key, value in batch.kwargs.items()}
    return CalibrationBatch(tuple(map(cut, batch.args)), kwargs)


_CAST = "cast the data to the model's dtype, as by .float()"
_REMEDIES = {  # by words of torch
    "the same dtype": _CAST,
    "expected scalar type": _CAST,
    "index out of range": "an id is none of the model's table: tokenize by its own tokenizer",
}


@contextlib.contextmanager
def called_with(number: int) -> Iterator[None]:
    """Name the batch of data that a model can't be called with.

    Raises:
        InputError: The model raised what models and torch do for arguments that don't fit.
    """
    try:
        yield
    except MISFITS as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"the model can't be called with batch {number} of the calibration data: "
            f"{misfit(error)}"
        ) from error


def misfit(error: Exception) -> str:
    """What a model says of data that it can't take, and what to pass instead."""
    said = first_line(error)
    found = (remedy for words, remedy in _REMEDIES.items() if words in said)
    return f"{said}; {next(found, 'pass batches of what the model is called with')}"
