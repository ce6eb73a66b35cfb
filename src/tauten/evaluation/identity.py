"""What a user's function computes with, so that a run that goes on knows whether it is the same."""

import copyreg
import hashlib
import sys
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

from torch import Tensor

from tauten.models.source import fingerprint_tensors

_PLAIN = (type(None), bool, int, float, complex, str, bytes)
_OF_CLASSES = (FunctionType, staticmethod, classmethod, property, type, *_PLAIN)
_INSTALLED = [Path(sysconfig.get_paths()[p]).resolve() for p in ("stdlib", "purelib", "platlib")]


def identity(value: Any) -> str:
    """SHA-256 of a value's code and of all that it is made of.

    Of functions these are code, defaults, what they close over and which globals they name; of
    classes methods, constants and bases; of modules their file; of tensors their values; of other
    objects class and what they are pickled from. What is installed counts by its name and version.
    A value that can't be pickled counts by its class alone.
    """
    digest, seen = hashlib.sha256(), dict[int, tuple[int, Any]]()
    for part in _parts(value, seen):
        digest.update(part.encode() + b"\n")
    return digest.hexdigest()


def _parts(value: Any, seen: dict[int, tuple[int, Any]]) -> Iterator[str]:
    if isinstance(value, _PLAIN):
        yield repr(value)
        return
    if id(value) in seen:  # a function that calls itself, a list in itself
        yield f"again {seen[id(value)][0]}"
        return
    seen[id(value)] = len(seen), value  # held, so that no other takes its id
    yield f"{type(value).__module__}.{type(value).__qualname__}"
    if isinstance(value, Tensor):
        yield fingerprint_tensors({"": value})
    elif isinstance(value, FunctionType | type | BuiltinFunctionType) and _is_installed(value):
        yield f"{value.__module__}.{value.__qualname__} {_version(value.__module__ or '')}"
    elif isinstance(value, ModuleType):
        yield value.__name__
        yield _version(value.__name__) if _is_installed(value) else _source(value)
    elif isinstance(value, CodeType):  # without line numbers and file names, which change nothing
        yield f"{value.co_code.hex()} {value.co_names} {value.co_varnames}"
        yield from _parts(value.co_consts, seen)
    else:
        for inner in _inside(value):
            yield from _parts(inner, seen)


def _inside(value: Any) -> Iterator[Any]:
    if isinstance(value, FunctionType):
        yield from (value.__code__, value.__defaults__, value.__kwdefaults__)
        yield [_content(cell) for cell in value.__closure__ or ()]
        names = sorted(set(_names(value.__code__)) & set(value.__globals__))
        yield [(name, value.__globals__[name]) for name in names]
    elif isinstance(value, MethodType):
        yield from (value.__func__, value.__self__)
    elif isinstance(value, staticmethod | classmethod):
        yield value.__func__
    elif isinstance(value, property):
        yield from (value.fget, value.fset)
    elif isinstance(value, type):
        yield from (value.__qualname__, value.__bases__)
        own = {k: v for k, v in vars(value).items() if isinstance(v, _OF_CLASSES)}
        yield [(k, v) for k, v in sorted(own.items()) if k not in ("__module__", "__doc__")]
    elif isinstance(value, dict):
        yield from (item for pair in value.items() for item in pair)
    elif isinstance(value, tuple | list):
        yield from value
    elif isinstance(value, set | frozenset):
        yield sorted(map(repr, value))
    else:
        yield _pickled_from(value)


def _pickled_from(value: Any) -> Any:
    """What makes another object like this one; its class where nothing does."""
    reduce: Callable[[Any], Any] = copyreg.dispatch_table.get(
        type(value), lambda it: it.__reduce_ex__(4)
    )
    try:
        return type(value), reduce(value)
    except (TypeError, ValueError, RuntimeError, AttributeError):  # it can't be pickled
        return type(value)


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # a variable without a value yet
        return "empty"


def _names(code: CodeType) -> Iterator[str]:
    """Of globals and attributes that code names, that of functions inside of it included."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)


def _is_installed(value: Any) -> bool:
    """Whether something comes from Python, from us or from an installed package."""
    if isinstance(value, FunctionType):  # its `__module__` may be that of what it wraps
        name = value.__globals__.get("__name__", "")
    else:
        name = value.__name__ if isinstance(value, ModuleType) else value.__module__ or "builtins"
    top = name.partition(".")[0]
    if top in sys.builtin_module_names or top == __name__.partition(".")[0]:
        return True
    file = getattr(sys.modules.get(top), "__file__", None)
    return file is not None and any(Path(file).resolve().is_relative_to(f) for f in _INSTALLED)


def _version(module: str) -> str:
    return str(getattr(sys.modules.get(module.partition(".")[0]), "__version__", ""))


def _source(module: ModuleType) -> str:
    file = getattr(module, "__file__", None)
    return hashlib.sha256(Path(file).read_bytes()).hexdigest() if file else ""
