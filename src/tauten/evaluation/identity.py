"""What a user's function computes with, so that a run that goes on knows whether it is the same."""

import hashlib
import inspect
from collections.abc import Iterator
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

from torch import Tensor

from tauten.models.source import fingerprint_tensors

_PLAIN = (type(None), bool, int, float, complex, str, bytes)


def identity(value: Any) -> str:
    """SHA-256 of a value's code and of all that it is made of.

    Of functions these are code, defaults, what they close over and which globals they name; of
    other objects class and attributes; of tensors their values. Modules, classes and builtins
    count by their names. A value of another kind counts by its type alone.
    """
    digest, seen = hashlib.sha256(), dict[int, int]()
    for part in _parts(value, seen):
        digest.update(part.encode() + b"\n")
    return digest.hexdigest()


def _parts(value: Any, seen: dict[int, int]) -> Iterator[str]:
    if isinstance(value, _PLAIN):
        yield repr(value)
        return
    if id(value) in seen:  # a function that calls itself, a list in itself
        yield f"again {seen[id(value)]}"
        return
    seen[id(value)] = len(seen)
    yield f"{type(value).__module__}.{type(value).__qualname__}"
    if isinstance(value, Tensor):
        yield fingerprint_tensors({"": value})
    elif isinstance(value, ModuleType | type | BuiltinFunctionType):
        yield value.__name__
    elif isinstance(value, CodeType):
        yield from _of_code(value, seen)
    else:
        for inner in _inside(value):
            yield from _parts(inner, seen)


def _of_code(code: CodeType, seen: dict[int, int]) -> Iterator[str]:
    """Without line numbers and file names, which change nothing."""
    yield f"{code.co_code.hex()} {code.co_names} {code.co_varnames}"
    for constant in code.co_consts:
        yield from _parts(constant, seen)


def _inside(value: Any) -> Iterator[Any]:
    if isinstance(value, FunctionType):
        yield value.__code__
        yield from (value.__defaults__, value.__kwdefaults__)
        used = inspect.getclosurevars(value)
        yield from (used.nonlocals, used.globals, sorted(used.unbound))
    elif isinstance(value, MethodType):
        yield from (value.__func__, value.__self__)
    elif isinstance(value, dict):
        yield from (item for pair in value.items() for item in pair)
    elif isinstance(value, tuple | list):
        yield from value
    elif isinstance(value, set | frozenset):
        yield sorted(map(repr, value))
    else:
        methods = vars(type(value)).values()
        yield [method for method in methods if isinstance(method, FunctionType)]
        yield dict(sorted(getattr(value, "__dict__", {}).items()))
