"""Batches dealt out in even parts, and outputs put together again; `core.rows` cuts them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tauten.core.dtypes import dtype_name
from tauten.core.errors import InputError
from tauten.core.rows import map_rows
from tauten.core.trees import children, map_tensors, same_values, tensors_of, unflatten

_LISTS = (list, tuple)
Path = tuple[int, ...]  # where something stands in a tree: numbers of children


@dataclass(frozen=True)
class Joins:
    """How outputs of parts make up one, where tensors of rows aren't all that there is.

    Attributes:
        lists: Where they hold a list or tuple of one item for each row, such as boxes of images.
        whole: Where they hold a tensor that each part gives whole, such as a table of classes.
    """

    lists: frozenset[Path] = frozenset()
    whole: frozenset[Path] = frozenset()


NO_JOINS = Joins()


def even_sizes(rows: int, parts: int) -> list[int]:
    """Rows of each part, as even as can be, larger ones first; empty where there are too few."""
    each, more = divmod(rows, parts)
    return [each + (part < more) for part in range(parts)]


def twice(inputs: Any) -> Any:
    """Inputs with all rows doubled."""
    return map_rows(lambda x: torch.cat([x, x]) if isinstance(x, Tensor) else x + x, inputs)


def joins_of(whole: Any, parts: Sequence[Any], sizes: Sequence[int], at: Path = ()) -> Joins:
    """How the outputs of a call are made up of those of its parts.

    Args:
        whole: Outputs of a call.
        parts: Of its parts.
        sizes: Rows that each was computed of.
        at: Where these stand in the outputs.
    """
    pairs = [(whole, sum(sizes)), *zip(parts, sizes, strict=True)]
    if type(whole) in _LISTS and all(type(x) is type(whole) and len(x) == n for x, n in pairs):
        return Joins(lists=frozenset({at}))
    if isinstance(whole, Tensor) and whole.dim():
        same = all(isinstance(x, Tensor) and x.shape == whole.shape for x in parts)
        return Joins(whole=frozenset({at} if same else ()))
    opened = [children(tree) for tree in (whole, *parts)]
    if len({0 if pair is None else len(pair[0]) for pair in opened}) > 1:
        return NO_JOINS
    columns = enumerate(zip(*(pair[0] for pair in opened if pair), strict=True))
    below = [joins_of(x, rest, sizes, (*at, n)) for n, (x, *rest) in columns]
    lists, wholes = (x.lists for x in below), (x.whole for x in below)
    return Joins(frozenset().union(*lists), frozenset().union(*wholes))


def join_rows(
    parts: Sequence[Any], sizes: Sequence[int], joins: Joins = NO_JOINS, at: Path = ()
) -> Any:
    """One output of those of its parts, in new memory.

    Args:
        parts: Trees of the same form.
        sizes: Rows that each was computed of.
        joins: What is known of them.
        at: Where these stand in the outputs.
    Raises:
        InputError: A leaf has no row for each of the call's, and isn't the same in all parts.
    """
    if at in joins.lists:
        return _join_lists(parts, sizes)
    opened = [children(part) for part in parts]
    found = [pair for pair in opened if pair is not None]
    if not found:
        return _join(parts, sizes, at in joins.whole)
    if len(found) < len(opened) or any(form != found[0][1] for _, form in found):
        raise InputError(f"parts of {list(sizes)} rows returned trees of different forms")
    columns = enumerate(zip(*(below for below, _ in found), strict=True))
    joined = [join_rows(column, sizes, joins, (*at, n)) for n, column in columns]
    return unflatten(joined, found[0][1])


def _join_lists(parts: Sequence[Any], sizes: Sequence[int]) -> Any:
    kind = type(parts[0])
    if any(type(p) is not kind or len(p) != n for p, n in zip(parts, sizes, strict=True)):
        raise InputError(f"parts of {list(sizes)} rows returned lists of other lengths")
    return map_tensors(Tensor.clone, kind(item for part in parts for item in part))


def _join(column: Sequence[Any], sizes: Sequence[int], is_whole: bool) -> Any:
    if all(isinstance(leaf, Tensor) for leaf in column):
        rest = {(leaf.dtype, leaf.shape[1:]) for leaf in column}
        by_rows = all(leaf.dim() and len(leaf) == n for leaf, n in zip(column, sizes, strict=True))
        if by_rows and len(rest) == 1 and not is_whole:
            return torch.cat(list(column))
        if len(rest) == 1 and all(torch.equal(leaf, column[0]) for leaf in column):
            return column[0].clone()
        shapes = [tuple(leaf.shape) for leaf in column]
        raise InputError(
            f"parts of {list(sizes)} rows gave a tensor of shapes {shapes}: outputs are joined by "
            "rows; leave out what has none, such as a loss (compute it from the outputs)"
        )
    if all(same_values(leaf, column[0]) for leaf in column):
        return column[0]
    raise InputError(f"parts of a batch returned different {type(column[0]).__name__} values")


def is_floating(leaf: Any) -> bool:
    """Whether a leaf is a tensor that can have a gradient."""
    return isinstance(leaf, Tensor) and leaf.is_floating_point()


def to_device(tree: Any, device: str | torch.device) -> Any:
    """A tree with its tensors on a device."""
    return map_tensors(lambda tensor: tensor.to(device), tree)


def place_of(call: Any) -> torch.device:
    """The device of a call's first tensor, where its outputs are wanted."""
    return next((tensor.device for tensor in tensors_of(call)), torch.device("cpu"))


def describe_call(inputs: tuple[Any, Any]) -> dict[str, Any]:
    """Shapes and dtypes of a call's arguments, as JSON; other values by their form."""

    def one(leaf: Any) -> Any:
        if isinstance(leaf, Tensor):
            return {"shape": list(leaf.shape), "dtype": dtype_name(leaf.dtype)}
        return repr(leaf)

    args, kwargs = inputs
    return {"args": [one(x) for x in args], "kwargs": {key: one(x) for key, x in kwargs.items()}}
