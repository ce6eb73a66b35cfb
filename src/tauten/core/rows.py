"""Which rows a call has, and parts of it by rows.

A batch is the first dimension of tensors; or a list, whose items are its rows, such as the images
that a detector is called with.
"""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from tauten.core.errors import InputError
from tauten.core.trees import leaves_of, map_leaves, tensors_of


def count_rows(inputs: Any) -> int:
    """Rows of a call: the items of its first list of tensors, or the first dimension of a tensor.

    Whichever comes first, that counts.

    Args:
        inputs: A tree (tuples, lists, dicts, and objects of them) of tensors and anything else.
    Raises:
        InputError: There is no such list or tensor.
    """
    for leaf in leaves_of(inputs, _is_list_of_tensors):
        if not isinstance(leaf, Tensor | list) or (isinstance(leaf, Tensor) and not leaf.dim()):
            continue
        return len(leaf)
    raise InputError("the call has no tensor with a batch dimension; pass tensors (batch, ...)")


def cut_rows(inputs: Any, sizes: Sequence[int]) -> list[Any]:
    """Parts of a call by rows; they share memory with it.

    Tensors and lists with as many rows as the call are cut; everything else goes to every part.

    Args:
        inputs: A tree of tensors and anything else.
        sizes: Rows of each part; they add up to the rows of the call.
    """
    starts = [sum(sizes[:part]) for part in range(len(sizes))]

    def part(start: int, size: int) -> Any:
        return map_rows(lambda leaf: leaf[start : start + size], inputs)

    return [part(start, size) for start, size in zip(starts, sizes, strict=True)]


def has_rows(leaf: Any, rows: int) -> bool:
    """Whether a tensor or list has a row for each of the call's."""
    if isinstance(leaf, Tensor):
        return leaf.dim() > 0 and len(leaf) == rows
    return type(leaf) is list and len(leaf) == rows


def map_rows(function: Callable[[Any], Any], inputs: Any) -> Any:
    """Inputs with a function's results in the place of what has a row for each of the call's."""
    rows = count_rows(inputs)
    return map_leaves(
        lambda leaf: function(leaf) if has_rows(leaf, rows) else leaf,
        inputs,
        lambda value: type(value) is list and len(value) == rows,
    )


def _is_list_of_tensors(value: Any) -> bool:
    return type(value) is list and bool(value) and all(tensors_of(item) for item in value)
