"""Examples from DataLoaders and other iterables of tensors."""

import logging
import math
from collections.abc import Iterable, Mapping, Sequence, Sized
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten
from torch.utils.data import Dataset, IterableDataset

from tauten.core.errors import InputError
from tauten.core.figures import plural
from tauten.core.rows import count_rows
from tauten.core.trees import same_values, tensors_of
from tauten.data.calls import Call, as_call, is_item_list
from tauten.data.items import ItemReader, Kind
from tauten.data.text_rows import SCALARS, holds_text
from tauten.data.texts import is_text

ROWS_PER_BATCH = 64
_MAIN = ("logits", "sentence_embedding", "last_hidden_state")  # outputs, where a model names them
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Same:
    """What all batches have in common."""

    value: Any


@dataclass(frozen=True)
class Rows:
    """Independent examples, batched on demand.

    Attributes:
        leaves: Tensors and lists with one row an example, and what all have in common; None where
            batches can't be taken apart.
        spec: How leaves form a batch.
        batches: The batches as given, where they can't be taken apart; each is then an example.
    """

    leaves: list[Any] | None
    spec: Any
    batches: list[Any]

    def __len__(self) -> int:
        return len(self.batches) if self.leaves is None else _rows_in(self.leaves)

    def contents(self) -> list[bytes]:
        """What each example holds, by which those that repeat others are told.

        Only where batches can be taken apart.
        """
        assert self.leaves is not None, "batches can be taken apart"
        parts = [_bytes(leaf) for leaf in self.leaves if not isinstance(leaf, _Same)]
        return [b"".join(row) for row in zip(*parts, strict=True)]

    def take(self, indices: Sequence[int], rows_per_batch: int = ROWS_PER_BATCH) -> list[Any]:
        """Batches of the given examples."""
        if self.leaves is None:
            return [self.batches[i] for i in indices]
        parts = torch.tensor(indices).split(rows_per_batch)
        return [
            tree_unflatten([_taken(leaf, part) for leaf in self.leaves], self.spec)
            for part in parts
        ]


def listed(data: Any) -> tuple[Any, bool]:
    """A user's data with iterables read, one batch as a list of it; and whether it is text.

    Text is a name or path, or a list of strings, of chats, or of rows of which none is of numbers.
    """
    if hasattr(data, "columns") and hasattr(data, "to_dict"):
        data = data.to_dict("records")  # a table of pandas, which iterates over its header
    if isinstance(data, Mapping):
        data = _rows_of_columns(data)
    if isinstance(data, np.ndarray) and is_text(data):
        data = data.tolist()
    if is_text(data):
        return data, True
    if isinstance(data, Mapping | Tensor | np.ndarray):
        return [data], False
    if isinstance(data, Dataset) and isinstance(data, Sized) and not isinstance(data, Iterable):
        return (_items(data), True) if len(data) and holds_text(data[0]) else (data, False)
    if isinstance(data, Iterable) and not isinstance(data, Dataset | list):
        data = list(data)
    return data, is_text(data)


def load_rows(data: Any, model: nn.Module | None = None, as_given: bool = False) -> Rows:
    """Read an iterable of batches whole, and say what was read.

    A batch is a tensor, or a tuple, list or dict of tensors, or holds lists of items such as the
    images of a detector. Where all batches have tensors that agree in all but their first
    dimension, and no such lists, each row is an example of its own; otherwise each batch is one.

    Args:
        data: Such an iterable; its items may also be single rows, as those of a Dataset.
        model: Tells rows from batches, and what of them are its arguments.
        as_given: Leave batches as they are given; else they are inputs, or (inputs, targets).
    Raises:
        InputError: It isn't iterable, is empty, or holds something else than tensors.
    """
    items = _items(data)
    if not items:
        raise InputError("data is empty; pass at least a dozen examples")
    gives_rows = isinstance(data, Dataset) and not isinstance(data, IterableDataset)
    reader = ItemReader.of(items[0], model, gives_rows)
    batches = [batch for item in items for batch in reader.read(item)]
    for number, batch in enumerate(batches, 1):
        _check(number, batch)
    unused: tuple[str, ...] = ()
    # A last batch of few rows may look like a list of items, others tell that it is none.
    if all(map(is_item_list, batches)) and (model is None or reader.takes_one(batches[0])):
        rows = Rows(None, None, [(batch,) for batch in batches])
    else:
        if model is not None:
            pairs = [tuple(batch) if isinstance(batch, list) else batch for batch in batches]
            calls = _calls(model, pairs)
            batches = batches if as_given else [call.batch for call in calls]
            unused = calls[0].unused
        rows = Rows(None, None, batches) if reader.kind is Kind.WHOLE else _rows(batches)
    if not len(rows):
        raise InputError("data: all batches have 0 rows; pass at least a dozen examples")
    _announce(rows, len(batches), reader.kind, unused, type(model).__name__)
    return rows


def _calls(model: nn.Module, batches: Sequence[Any]) -> list[Call]:
    calls = []
    for number, batch in enumerate(batches, 1):
        try:
            calls.append(as_call(model, batch))
        except InputError as error:
            raise InputError(f"data: batch {number}: {error}") from None
    return calls


def _announce(rows: Rows, batches: int, kind: Kind, unused: Sequence[str], model: str) -> None:
    how = "" if kind is Kind.ROW else f" in {plural(batches, 'batch')}"
    how += f", each {Kind.WHOLE.value}" if kind is Kind.WHOLE else ""
    said = f"data: {plural(len(rows), 'example')}{how}"
    if unused:
        _log.warning("%s; left out: %s, which %s doesn't take", said, ", ".join(unused), model)
    else:
        _log.info("%s", said)


def _items(data: Any) -> list[Any]:
    if isinstance(data, Tensor | np.ndarray):
        return [data]
    if isinstance(data, Dataset) and not isinstance(data, Iterable) and isinstance(data, Sized):
        return [data[i] for i in range(len(data))]
    if not isinstance(data, Iterable) or isinstance(data, str | bytes):
        raise InputError(f"data is a {type(data).__name__}; expected an iterable of tensor batches")
    return list(data)


def _rows_of_columns(data: Mapping[str, Any]) -> Any:
    """Columns of texts, as the datasets library slices them, as rows; anything else as it is."""
    columns = list(data.values())
    if not columns or not all(type(c) is list and len(c) == len(columns[0]) for c in columns):
        return data
    rows = [dict(zip(data, row, strict=True)) for row in zip(*columns, strict=True)]
    return rows if is_text(rows) else data


def _check(number: int, batch: Any) -> None:
    leaves, _ = _flatten(batch)
    is_dict = isinstance(batch[0] if isinstance(batch, tuple | list) and batch else batch, dict)
    others = [leaf for leaf in leaves if not isinstance(leaf, Tensor)]
    wrong = [x for x in others if not (is_dict and isinstance(x, (*SCALARS, list)))]
    if wrong or len(others) == len(leaves):
        found = f": a {type(wrong[0]).__name__}" if wrong else ""
        raise InputError(
            f"data: batch {number} holds something else than tensors{found}; expected tensors or "
            "arrays, or a dict of them and of numbers and names; or texts, as a list of strings"
        )
    tensors = (leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point())
    if any(not tensor.isfinite().all() for tensor in tensors):
        raise InputError(f"data: batch {number} holds NaN or infinity")


def _flatten(batch: Any) -> tuple[list[Any], Any]:
    """Leaves and form of a batch; a list without tensors, such as of names, is a leaf."""
    return tree_flatten(batch, lambda value: type(value) is list and not tensors_of(value))


def _rows(batches: list[Any]) -> Rows:
    """Rows of batches, or whole batches where they can't be taken apart."""
    flat = [_flatten(batch) for batch in batches]
    spec = flat[0][1]
    if any(map(_holds_lists, batches)) or any(other != spec for _, other in flat):
        return Rows(None, None, batches)
    sizes = [_rows_in(leaves) for leaves, _ in flat]
    columns = [_joined(leaf, sizes) for leaf in zip(*(leaves for leaves, _ in flat), strict=True)]
    whole = not any(column is None for column in columns)
    return Rows(columns, spec, []) if whole else Rows(None, None, batches)


def _joined(values: Sequence[Any], sizes: Sequence[int]) -> Any:
    """A leaf of all batches as one; None where it isn't by rows, and differs."""
    if all(isinstance(value, Tensor) for value in values):
        by_rows = all(v.dim() and len(v) == n for v, n in zip(values, sizes, strict=True))
        alike = len({value.shape[1:] for value in values}) == 1
        return torch.cat(list(values)) if by_rows and alike else None
    if all(type(v) is list and len(v) == n for v, n in zip(values, sizes, strict=True)):
        return [*chain(*values)]
    return _Same(values[0]) if all(same_values(v, values[0]) for v in values) else None


def _rows_in(leaves: Iterable[Any]) -> int:
    first = next(leaf for leaf in leaves if isinstance(leaf, Tensor))
    return len(first) if first.dim() else 0


def _bytes(leaf: Any) -> list[bytes]:
    """The content of each row of a tensor or list."""
    if isinstance(leaf, Tensor):
        flat = leaf.detach().reshape(len(leaf), math.prod(leaf.shape[1:]))
        return [row.tobytes() for row in flat.contiguous().view(torch.uint8).numpy()]
    return [repr(value).encode() for value in leaf]


def _taken(leaf: Any, rows: Tensor) -> Any:
    if isinstance(leaf, _Same):
        return leaf.value
    return leaf[rows] if isinstance(leaf, Tensor) else [leaf[row] for row in rows.tolist()]


def inputs_of(batch: Any) -> Any:
    """What the model is called with: the first of a (inputs, targets) pair, else the batch."""
    is_pair = isinstance(batch, tuple | list) and batch and not is_item_list(batch)
    inputs = batch[0] if is_pair else batch
    return dict(inputs) if isinstance(inputs, Mapping) else inputs


def call_model(model: nn.Module, batch: Any) -> Any:
    """Call a model on what of a batch is for it; see `as_call`."""
    return as_call(model, batch).on(model)


def main_output(output: Any) -> Tensor:
    """The tensor that counts: logits, a last hidden state, an embedding, or the first of numbers.

    One with rows rather than a single number, such as a loss.
    """
    for name in _MAIN:
        value = output.get(name) if isinstance(output, Mapping) else getattr(output, name, None)
        if isinstance(value, Tensor):
            return value
    tensors = [leaf for leaf in tree_flatten(output)[0] if isinstance(leaf, Tensor)]
    if not tensors:
        raise InputError(f"the model returned a {type(output).__name__} without a tensor in it")
    return next((t for t in tensors if t.dim() and t.is_floating_point()), tensors[0])


def _holds_lists(batch: Any) -> bool:
    """Whether a part of a batch is a list of tensors, such as of images of many sizes."""
    parts = batch.values() if isinstance(batch, dict) else batch
    grouped = isinstance(batch, tuple | dict)
    return grouped and any(isinstance(part, list) and tensors_of(part) for part in parts)


def rows_of(batch: Any) -> int:
    """How many examples a batch has; see `core.rows`."""
    inputs = inputs_of(batch)
    if isinstance(inputs, list) and not is_item_list(inputs):
        inputs = tuple(inputs)  # several inputs, which a DataLoader lists
    try:
        return count_rows(inputs)
    except InputError:  # it holds no tensor with a first dimension
        return 1
