"""Cut the inputs of a call along its batch, and put outputs together again."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

from tauten.core.errors import InputError


def count_rows(inputs: Any) -> int:
    """Rows of a call: the first dimension of its first tensor that has one.

    Args:
        inputs: A tree (tuples, lists, dicts) of tensors and anything else.
    Raises:
        InputError: There is no such tensor.
    """
    for leaf in tree_leaves(inputs):
        if isinstance(leaf, Tensor) and leaf.dim():
            return len(leaf)
    raise InputError("the call has no tensor with a batch dimension; pass tensors (batch, ...)")


def even_sizes(rows: int, parts: int) -> list[int]:
    """Rows of each part, as even as can be, larger ones first; empty where there are too few."""
    each, more = divmod(rows, parts)
    return [each + (part < more) for part in range(parts)]


def cut_rows(inputs: Any, sizes: Sequence[int]) -> list[Any]:
    """Parts of a call by rows; they share memory with it.

    Tensors with as many rows as the call are cut; everything else goes to every part.

    Args:
        inputs: A tree of tensors and anything else.
        sizes: Rows of each part; they add up to the rows of the call.
    """
    rows, starts = count_rows(inputs), [sum(sizes[:part]) for part in range(len(sizes))]

    def part(start: int, size: int) -> Any:
        def cut(leaf: Any) -> Any:
            is_batch = isinstance(leaf, Tensor) and leaf.dim() and len(leaf) == rows
            return leaf[start : start + size] if is_batch else leaf

        return tree_map(cut, inputs)

    return [part(start, size) for start, size in zip(starts, sizes, strict=True)]


def join_rows(parts: Sequence[Any], sizes: Sequence[int]) -> Any:
    """One output of those of its parts, in new memory.

    Args:
        parts: Trees of the same form.
        sizes: Rows that each was computed of.
    Raises:
        InputError: A leaf has no row for each of the call's, and isn't the same in all parts.
    """
    flat = [tree_flatten(part) for part in parts]
    columns = zip(*(leaves for leaves, _ in flat), strict=True)
    return tree_unflatten([_join(column, sizes) for column in columns], flat[0][1])


def _join(column: Sequence[Any], sizes: Sequence[int]) -> Any:
    if all(isinstance(leaf, Tensor) for leaf in column):
        rest = {(leaf.dtype, leaf.shape[1:]) for leaf in column}
        by_rows = all(leaf.dim() and len(leaf) == n for leaf, n in zip(column, sizes, strict=True))
        if by_rows and len(rest) == 1:
            return torch.cat(list(column))
        if len(rest) == 1 and all(torch.equal(leaf, column[0]) for leaf in column):
            return column[0].clone()
        shapes = [tuple(leaf.shape) for leaf in column]
        raise InputError(
            f"parts of {list(sizes)} rows gave a tensor of shapes {shapes}: outputs are joined by "
            "rows; leave out what has none, such as a loss (compute it from the outputs)"
        )
    if all(_same(leaf, column[0]) for leaf in column):
        return column[0]
    raise InputError(f"parts of a batch returned different {type(column[0]).__name__} values")


def _same(one: Any, other: Any) -> bool:
    try:
        return bool(one == other)
    except Exception:  # comparing runs code of whoever wrote the objects' class
        return False


def is_floating(leaf: Any) -> bool:
    """Whether a leaf is a tensor that can have a gradient."""
    return isinstance(leaf, Tensor) and leaf.is_floating_point()


def to_device(tree: Any, device: str | torch.device) -> Any:
    """A tree with its tensors on a device."""
    return tree_map(lambda leaf: leaf.to(device) if isinstance(leaf, Tensor) else leaf, tree)


def describe_call(inputs: tuple[Any, Any]) -> dict[str, Any]:
    """Shapes and dtypes of a call's arguments, as JSON; other values by their form."""

    def one(leaf: Any) -> Any:
        if isinstance(leaf, Tensor):
            return {"shape": list(leaf.shape), "dtype": str(leaf.dtype).removeprefix("torch.")}
        return repr(leaf)

    args, kwargs = inputs
    return {"args": [one(x) for x in args], "kwargs": {key: one(x) for key, x in kwargs.items()}}
