"""Odd values in the place of those of plain trees, as a fault or someone hostile would put them."""

import copy
import json
import random
from collections.abc import Iterator
from typing import Any

ODD = (
    *(None, True, False, -1, 0, 1.5, 10**7, 2**40, 2**63, -(2**70), 1e308, -1e308),
    *("", "x" * 10, "../x", "\0", "\ud800", [], {}, [[]], [None], {"a": {"b": [1]}}, "float32"),
)


def places_of(tree: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths to all values of a tree, and to itself."""
    yield path
    items = enumerate(tree) if isinstance(tree, list) else ()
    items = tree.items() if isinstance(tree, dict) else items
    for key, value in items:
        yield from places_of(value, (*path, key))


def mutated(tree: Any, seed: int) -> Any:
    """A copy with one value replaced, left out or given another name; the same for equal seeds."""
    chance, tree = random.Random(seed), copy.deepcopy(tree)
    *path, last = (None, *chance.choice(list(places_of(tree))))
    odd = copy.deepcopy(chance.choice(ODD))
    if not path:
        return odd
    parent = tree
    for key in path[1:]:
        parent = parent[key]
    what = chance.random()
    if what < 0.1:
        del parent[last]
    elif what < 0.15 and isinstance(parent, dict):
        parent[last + "x"] = parent.pop(last)
    else:
        parent[last] = odd
    return tree


def as_json(tree: Any) -> bytes:
    """As Python's own json writes it, NaN and half characters included."""
    return json.dumps(tree).encode()
