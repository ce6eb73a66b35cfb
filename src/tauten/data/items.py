"""What an item of a user's data is: a batch of rows, one row, or one example of many rows."""

import contextlib
import enum
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from tauten.core.errors import InputError
from tauten.core.rows import count_rows, cut_rows
from tauten.core.trees import tensors_of
from tauten.data.calls import Call, as_call, parameters_of
from tauten.models.batch import MISFITS
from tauten.models.state import state_kept

# Of batches that models of transformers take; those that aren't in memory are of transformers.
_DIMENSIONS = {"input_ids": 2, "pixel_values": 4, "input_values": 2, "input_features": 3}
_TRIED = 4  # rows
_NEAR = {torch.float32: 1e-3, torch.float64: 1e-6}  # relative, of the same rows in other batches
_NEAR_IN_FEW_BITS = 3e-2


class Kind(enum.Enum):
    """What an item is."""

    BATCH = "a batch of examples"
    ROW = "one example without a batch dimension"
    WHOLE = "one example, whose rows belong together"


@dataclass(frozen=True)
class ItemReader:
    """Makes batches of the items of one data set.

    Attributes:
        model: That is called with them, if there is one.
        kind: What the first item is, and so all.
    """

    model: nn.Module | None
    kind: Kind

    @staticmethod
    def of(first: Any, model: nn.Module | None, gives_rows: bool = False) -> "ItemReader":
        """The reader of items like a first one.

        Args:
            first: An item.
            model: As above.
            gives_rows: Items are known to be rows.
        """
        row = unbatched(first)[0]
        batch = tensors_in(row, _dtype_of(model))
        if gives_rows or _is_row(row):
            return ItemReader(model, Kind.ROW)
        if model is None or not tensors_of(batch):
            return ItemReader(model, Kind.BATCH)
        return ItemReader(model, _kind_of(model, batch))

    def read(self, item: Any) -> list[Any]:
        """The batches of an item: several where its rows have many lengths."""
        batches = [tensors_in(row, _dtype_of(self.model)) for row in unbatched(item)]
        return list(map(with_batch_dimension, batches)) if self.kind is Kind.ROW else batches

    def takes_one(self, batch: Any) -> bool:
        """Whether the model takes a list as one argument, as detectors do."""
        return self.model is None or as_call(self.model, batch).args == (batch,)


def tensors_in(item: Any, dtype: torch.dtype = torch.float32) -> Any:
    """An item on the CPU, with mappings as dicts, and arrays and lists of numbers as tensors.

    Args:
        item: Of data.
        dtype: Of what isn't a tensor yet and is floating: numpy makes float64 by default.
    """
    if isinstance(item, Tensor):
        return item.cpu().clone() if item.is_inference() else item.cpu()
    if isinstance(item, Mapping):
        return {key: tensors_in(value, dtype) for key, value in item.items()}
    if isinstance(item, np.ndarray | np.generic) and item.dtype.kind in "biuf":
        if item.dtype.kind == "u" and item.dtype.itemsize > 1:
            item = item.astype(np.int64)  # tokens in few bytes, which no embedding takes
        tensor = torch.tensor(item)
        return tensor.to(dtype) if tensor.is_floating_point() else tensor
    if type(item) is list and _is_numbers(item):
        return tensors_in(np.array(item), dtype)
    if type(item) not in (list, tuple):
        return item
    items = [tensors_in(value, dtype) for value in item]
    same = all(new is old for new, old in zip(items, item, strict=True))
    return item if same else type(item)(items)


def _is_numbers(value: Any) -> bool:
    """Whether a value is a list of numbers, or of such lists that are equally long."""
    if type(value) is not list or not value:
        return False
    if all(isinstance(x, int | float) for x in value):
        return True
    return all(map(_is_numbers, value)) and len({len(x) for x in value}) == 1


def unbatched(item: Any) -> list[Any]:
    """The rows of a dict of lists of many lengths, as a tokenizer makes it; else the item alone."""
    if not isinstance(item, Mapping):
        return [item]
    values = list(item.values())
    ragged = any(
        type(v) is list and not _is_numbers(v) and all(map(_is_numbers, v)) for v in values
    )
    if not ragged or len({len(v) for v in values if isinstance(v, list | Tensor)}) != 1:
        return [item]
    return [dict(zip(item, row, strict=True)) for row in zip(*values, strict=True)]


def _is_row(item: Any) -> bool:
    """Whether an item is made of flat lists of numbers, so that it is one row, as those of JSON."""
    values = item.values() if isinstance(item, Mapping) else [item]
    lists = [v for v in values if type(v) is list]
    return bool(lists) and all(_is_numbers(v) and not isinstance(v[0], list) for v in lists)


def with_batch_dimension(row: Any) -> Any:
    """A batch of one row."""

    def one(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value[None]
        return torch.tensor([value]) if isinstance(value, int | float) else [value]

    return tree_map(one, row)


def _kind_of(model: nn.Module, item: Any) -> Kind:
    """What an item of tensors is to a model, by what the model makes of it and of parts of it.

    A batch, where nothing speaks against that or the model isn't in memory.
    """
    call = as_call(model, item)
    if any(p.is_meta for p in model.parameters()):
        named = {
            **dict(zip(parameters_of(model).positional, call.args, strict=False)),
            **call.kwargs,
        }
        lacks = [key in named and named[key].dim() == dims - 1 for key, dims in _DIMENSIONS.items()]
        return Kind.ROW if any(lacks) else Kind.BATCH
    with _quiet(model):
        if _is_by_rows(model, call):
            return Kind.BATCH
        whole = _answer(model, call)
        if whole is not None and not _near(whole, _answer(model, call)):
            return Kind.BATCH  # it draws at random, so that nothing can be compared
        alone = _answer(model, as_call(model, with_batch_dimension(item)))
        if alone is not None and (whole is None or _near(alone[0], whole)):
            return Kind.ROW
        return Kind.BATCH if whole is None else Kind.WHOLE


def _is_by_rows(model: nn.Module, call: Call) -> bool:
    """Whether the answers to some rows don't depend on those before and after them."""
    inputs = (call.args, call.kwargs)
    try:
        rows = count_rows(inputs)
    except InputError:
        return True  # what has no rows isn't taken apart
    if rows < 2:
        return _answer(model, call) is not None
    tried = min(rows, _TRIED)
    start, size = (1, tried - 2) if tried > 2 else (1, 1)
    cuts = [start, size, rows - start - size]
    some, part = cut_rows(inputs, [tried, rows - tried])[0], cut_rows(inputs, cuts)[1]
    one, other = _answer(model, Call(*some)), _answer(model, Call(*part))
    if one is None or other is None or len(one) != tried:
        return False
    return _near(one[start : start + size], other)


def _answer(model: nn.Module, call: Call) -> Tensor | None:
    """The first tensor with rows of what a model answers; None where it can't be called so."""
    try:
        found = call.on(model)
    except (InputError, *MISFITS):
        return None
    leaves = tree_leaves(dict(found) if isinstance(found, Mapping) else found)
    return next((x for x in leaves if isinstance(x, Tensor) and x.dim()), None)


@contextlib.contextmanager
def _quiet(model: nn.Module) -> Iterator[None]:
    """In evaluation mode, and so that nothing stays of the calls."""
    training = [module for module in model.modules() if module.training]
    try:
        with state_kept(model.eval()), torch.no_grad():
            yield
    finally:
        for module in training:
            module.training = True


def _dtype_of(model: nn.Module | None) -> torch.dtype:
    """Of the inputs of a model: float32 where it is loaded from disk."""
    found = (p for p in model.parameters() if p.is_floating_point()) if model is not None else ()
    first = next(iter(found), None)
    return torch.float32 if first is None or first.is_meta else first.dtype


def _near(one: Tensor, other: Tensor | None) -> bool:
    if other is None or one.shape != other.shape:
        return False
    limit = _NEAR.get(one.dtype, _NEAR_IN_FEW_BITS) if one.is_floating_point() else 0.0
    a, b = one.double(), other.double()
    return bool((a - b).norm() <= limit * b.norm())
