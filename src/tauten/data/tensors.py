"""Examples from DataLoaders and other iterables of tensors."""

import inspect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from tauten.core.errors import InputError
from tauten.core.rows import count_rows

ROWS_PER_BATCH = 64
_MOST_OF_A_PAIR = 3  # inputs, targets and weights
_CHANNELS = {1, 3, 4}  # of images


@dataclass(frozen=True)
class Rows:
    """Independent examples, batched on demand.

    Attributes:
        leaves: Tensors with one row an example, or None where batches can't be taken apart.
        spec: How leaves form a batch.
        batches: The batches as given, where they can't be taken apart; each is then an example.
    """

    leaves: list[Tensor] | None
    spec: Any
    batches: list[Any]

    def __len__(self) -> int:
        return len(self.batches) if self.leaves is None else self.leaves[0].shape[0]

    def take(self, indices: Sequence[int], rows_per_batch: int = ROWS_PER_BATCH) -> list[Any]:
        """Batches of the given examples."""
        if self.leaves is None:
            return [self.batches[i] for i in indices]
        rows = torch.tensor(indices)
        parts = rows.split(rows_per_batch)
        return [tree_unflatten([leaf[part] for leaf in self.leaves], self.spec) for part in parts]


def plain(batch: Any) -> Any:
    """A batch on the CPU, with mappings of any kind, such as a tokenizer's, as dicts and arrays as
    tensors."""
    if isinstance(batch, Tensor):
        return batch.cpu().clone() if batch.is_inference() else batch.cpu()
    if isinstance(batch, Mapping):
        return {key: plain(value) for key, value in batch.items()}
    if isinstance(batch, np.ndarray):
        return torch.from_numpy(batch)
    if type(batch) not in (list, tuple):
        return batch
    items = [plain(item) for item in batch]
    same = all(new is old for new, old in zip(items, batch, strict=True))
    return batch if same else type(batch)(items)


def listed(data: Any) -> tuple[Any, bool]:
    """A user's data with iterables read, one batch as a list of it; and whether it is text.

    Text is a name or path, or a list of strings.
    """
    if isinstance(data, str | Path):
        return data, True
    if isinstance(data, Mapping | Tensor | np.ndarray):
        return [plain(data)], False
    if isinstance(data, Iterable):
        data = list(data)
    return data, isinstance(data, list) and bool(data) and isinstance(data[0], str)


def load_rows(data: Iterable[Any]) -> Rows:
    """Read an iterable of batches whole.

    A batch is a tensor, or a tuple, list or dict of tensors, or holds lists of items such as the
    images of a detector. Where all batches have tensors that agree in all but their first
    dimension, and no such lists, each row is an example of its own; otherwise each batch is one.

    Raises:
        InputError: It isn't iterable, is empty, or holds something else than tensors.
    """
    if not isinstance(data, Iterable) or isinstance(data, str | bytes):
        raise InputError(f"data is a {type(data).__name__}; expected an iterable of tensor batches")
    batches = [plain(data)] if isinstance(data, Tensor) else [plain(batch) for batch in data]
    if not batches:
        raise InputError("data is empty; pass at least a dozen examples")
    flat = [tree_flatten(batch) for batch in batches]
    for number, (leaves, _) in enumerate(flat, 1):
        if not leaves or not all(isinstance(leaf, Tensor) for leaf in leaves):
            raise InputError(f"data: batch {number} holds something else than tensors")
        if any(leaf.is_floating_point() and not leaf.isfinite().all() for leaf in leaves):
            raise InputError(f"data: batch {number} holds NaN or infinity")
    spec = flat[0][1]
    if all(map(is_item_list, batches)):
        return Rows(None, spec, [(batch,) for batch in batches])
    # A last batch of few rows may look like a list of items, others tell that it is none.
    batches = [tuple(batch) if isinstance(batch, list) else batch for batch in batches]
    if any(_holds_lists(batch) for batch in batches) or not _can_be_taken_apart(
        [leaves for leaves, _ in flat], [s for _, s in flat]
    ):
        return Rows(None, spec, batches)
    columns = zip(*(leaves for leaves, _ in flat), strict=True)
    return Rows([torch.cat(column) for column in columns], spec, [])


def inputs_of(batch: Any) -> Any:
    """What the model is called with: the first of a (inputs, targets) pair, else the batch."""
    is_pair = isinstance(batch, tuple | list) and batch and not is_item_list(batch)
    inputs = batch[0] if is_pair else batch
    return dict(inputs) if isinstance(inputs, Mapping) else inputs


def is_item_list(batch: Any) -> bool:
    """Whether a list is itself the inputs, one tensor an item, and no pair of inputs and targets.

    Items are alike in all but their sizes. Where two or three tensors have equally many rows they
    are inputs, targets and weights, as a DataLoader deals them out, unless they look like images
    (1, 3 or 4 channels, height, width).
    """
    if type(batch) is not list or len(batch) < 2:
        return False
    if not all(isinstance(x, Tensor) and x.dim() for x in batch):
        return False
    if len({(x.dtype, x.dim()) for x in batch}) > 1:
        return False
    sizes, has_few = {len(x) for x in batch}, len(batch) <= _MOST_OF_A_PAIR
    return len(sizes) > 1 or not has_few or (batch[0].dim() == 3 and sizes <= _CHANNELS)


def call_model(model: torch.nn.Module, batch: Any) -> Any:
    """Call a model on the inputs of a batch; a dict is passed as keywords, or as one argument."""
    inputs = inputs_of(batch)
    by_name = isinstance(inputs, dict) and not takes_one_dict(model, inputs)
    return model(**inputs) if by_name else model(inputs)


def takes_one_dict(model: torch.nn.Module, inputs: dict[str, Any]) -> bool:
    """Whether a dict is the only argument that a model requires, as in sentence-transformers."""
    kinds = inspect.signature(model.forward).parameters.values()
    required = [p.name for p in kinds if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]
    return len(required) == 1 and required[0] not in inputs


def main_output(output: Any) -> Tensor:
    """The tensor that counts: logits, an embedding or the last hidden state, or the first."""
    for name in ("logits", "sentence_embedding", "last_hidden_state"):
        value = output.get(name) if isinstance(output, dict) else getattr(output, name, None)
        if isinstance(value, Tensor):
            return value
    leaves, _ = tree_flatten(output)
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    if not tensors:
        raise InputError(f"the model returned a {type(output).__name__} without a tensor in it")
    return tensors[0]


def _holds_lists(batch: Any) -> bool:
    values = batch.values() if isinstance(batch, dict) else batch
    return isinstance(batch, tuple | dict) and any(isinstance(value, list) for value in values)


def _can_be_taken_apart(leaves: list[list[Tensor]], specs: list[Any]) -> bool:
    if any(spec != specs[0] for spec in specs):
        return False
    for batch in leaves:
        if any(leaf.dim() == 0 or leaf.shape[0] != batch[0].shape[0] for leaf in batch):
            return False
    rows = [[leaf.shape[1:] for leaf in batch] for batch in leaves]
    return all(row == rows[0] for row in rows)


def rows_of(batch: Any) -> int:
    """How many examples a batch has; see `core.rows`."""
    try:
        return count_rows(inputs_of(batch))
    except InputError:  # it holds no tensor with a first dimension
        return 1
