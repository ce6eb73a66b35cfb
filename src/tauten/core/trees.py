"""What calls are given and return, as trees of leaves.

pytree knows lists, tuples, dicts and what is registered with it. Any other object that holds
tensors, such as a cache or an encoding, is taken apart here as pickle would take it, and put
together again of other tensors. An object that can't be is a leaf.
"""

import copy
import copyreg
import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

_CLOSED = (Tensor, nn.Module, type, types.FunctionType, types.ModuleType, str, bytes, int, float)
IsLeaf = Callable[[Any], bool]


@dataclass(frozen=True)
class Form:
    """A tree without its leaves.

    Attributes:
        outer: As pytree sees it.
        inner: For each of its leaves: of the parts of an object, and how many leaves they have;
            None for what is a leaf.
    """

    outer: Any
    inner: tuple["tuple[Form, int] | None", ...]


def flatten(tree: Any, is_leaf: IsLeaf | None = None) -> tuple[list[Any], Form]:
    """The leaves of a tree, and its form.

    Args:
        tree: Of anything.
        is_leaf: Whether what would be taken apart is a leaf.
    """
    return _flatten(tree, is_leaf, None)


def unflatten(leaves: list[Any], form: Form) -> Any:
    """The tree of a form with these leaves; its objects are new ones."""
    outer, start = [], 0
    for part in form.inner:
        end = start + (1 if part is None else part[1])
        outer.append(
            leaves[start] if part is None else _made(unflatten(leaves[start:end], part[0]))
        )
        start = end
    return tree_unflatten(outer, form.outer)


def leaves_of(tree: Any, is_leaf: IsLeaf | None = None) -> list[Any]:
    """The leaves of a tree."""
    return flatten(tree, is_leaf)[0]


def tensors_of(tree: Any) -> list[Tensor]:
    """The tensors of a tree."""
    return [leaf for leaf in leaves_of(tree) if isinstance(leaf, Tensor)]


def map_leaves(function: Callable[[Any], Any], tree: Any, is_leaf: IsLeaf | None = None) -> Any:
    """The tree with a function's results in the place of its leaves."""
    leaves, form = flatten(tree, is_leaf)
    return unflatten([function(leaf) for leaf in leaves], form)


def map_tensors(function: Callable[[Tensor], Any], tree: Any) -> Any:
    """The tree with a function's results in the place of its tensors."""
    return map_leaves(lambda leaf: function(leaf) if isinstance(leaf, Tensor) else leaf, tree)


def children(tree: Any) -> tuple[list[Any], Form] | None:
    """What a tree is made of, one level down, and its form; None for a leaf."""
    found, form = flatten(tree, lambda value: value is not tree)
    return None if len(found) == 1 and found[0] is tree else (found, form)


class Watched:
    """Tells what a call changes in place within the lists, dicts and objects that it is given.

    Tensors that are arguments themselves don't count: some models work in them.

    Args:
        args, kwargs: Of the call, before it.
    """

    def __init__(self, args: Any, kwargs: Any):
        named = {**{f"argument {number}": x for number, x in enumerate(args, 1)}, **kwargs}
        self._values = {name: x for name, x in named.items() if not isinstance(x, Tensor)}
        self._before = {name: _state(value) for name, value in self._values.items()}

    def changed(self) -> list[str]:
        """Names of the arguments that differ now."""
        return [name for name, value in self._values.items() if not self._is_as_before(name, value)]

    def _is_as_before(self, name: str, value: Any) -> bool:
        (leaves, *rest), (before, *others) = _state(value), self._before[name]
        return rest == others and all(
            one is other if isinstance(one, Tensor) else same_values(one, other)
            for one, other in zip(leaves, before, strict=True)
        )


def copied(tree: Any) -> Any:
    """A tree of copies; its tensors have no gradients."""
    return copy.deepcopy(tree, {id(t): t.detach().clone() for t in tensors_of(tree)})


def same_values(one: Any, other: Any) -> bool:
    """Whether two values are equal; not where they can't be compared."""
    try:
        return one is other or bool(one == other)
    except Exception:  # comparing runs code of whoever wrote the objects' class
        return False


def _state(value: Any) -> tuple[list[Any], Form, list[int]]:
    """Leaves, form, and how often each tensor was changed in place, where torch counts that."""
    leaves, form = flatten(value)
    tensors = (leaf for leaf in leaves if isinstance(leaf, Tensor))
    return leaves, form, [0 if t.is_inference() else t._version for t in tensors]


def _flatten(
    tree: Any, is_leaf: IsLeaf | None, within: dict[int, Any] | None
) -> tuple[list[Any], Form]:
    """As `flatten`; `within` are the objects that were met since the outermost, None outside."""
    outer, spec = tree_flatten(tree, is_leaf)
    leaves: list[Any] = []
    inner: list[tuple[Form, int] | None] = []
    for value in outer:
        is_closed = is_leaf is not None and is_leaf(value)
        opened = None if is_closed else _opened(value, within)
        leaves += [value] if opened is None else opened[0]
        inner.append(None if opened is None else (opened[1], len(opened[0])))
    return leaves, Form(spec, tuple(inner))


def _opened(value: Any, within: dict[int, Any] | None) -> tuple[list[Any], Form] | None:
    """The leaves of an object's parts and their form; None for what is a leaf."""
    parts = _parts(value)
    if parts is None:
        return None
    if within is not None and id(value) in within:
        raise _TangledError
    try:
        met = {} if within is None else within
        met[id(value)] = value, parts  # kept, so that no identity is used twice
        leaves, form = _flatten(parts, None, met)
    except _TangledError:
        if within is None:
            return None
        raise
    return (leaves, form) if any(isinstance(leaf, Tensor) for leaf in leaves) else None


class _TangledError(Exception):
    """An object holds another twice, or itself: made of its parts it would be another."""


def _parts(value: Any) -> tuple[Any, ...] | None:
    """What pickle would make an object of; None for what has no parts, or doesn't tell them."""
    if value is None or isinstance(value, _CLOSED) or hasattr(type(value), "__array_interface__"):
        return None
    reducer = copyreg.dispatch_table.get(type(value))
    try:
        reduced = value.__reduce_ex__(4) if reducer is None else reducer(value)
        if not isinstance(reduced, tuple) or any(part is not None for part in reduced[5:]):
            return None
        maker, args, state, items, pairs = (*reduced, None, None, None)[:5]
        return maker, args, state, list(items or ()), list(pairs or ())
    except Exception:  # telling them runs code of whoever wrote the object's class
        return None


def _made(parts: tuple[Any, ...]) -> Any:
    """The object of these parts, as pickle makes it."""
    maker, args, state, items, pairs = parts
    made = maker(*args)
    if state is not None and hasattr(made, "__setstate__"):
        made.__setstate__(state)
    elif state is not None:
        attributes, slots = state if isinstance(state, tuple) else (state, None)
        if attributes:
            vars(made).update(attributes)
        for name, value in (slots or {}).items():
            object.__setattr__(made, name, value)  # also of a frozen class
    for item in items:
        made.append(item)
    for key, value in pairs:
        made[key] = value
    return made
