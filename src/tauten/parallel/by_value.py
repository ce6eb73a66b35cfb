"""Objects on their way to and from our own workers: code that isn't installed goes by value.

A class or function of an installed package is pickled by its name, and workers import the package.
One of a script, a notebook or a file beside the script is pickled with its code (cloudpickle), so
that no script is imported again: importing it would run it. A function that a function of a
package made, such as a hook, is pickled with its code too, but works on the package's own globals.
"""

import functools
import importlib
import importlib.metadata
import io
import json
import pickle
import site
import sys
import sysconfig
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from types import CellType, CodeType, FunctionType, ModuleType
from typing import Any
from urllib.parse import unquote, urlparse

import cloudpickle
from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from tauten.core.errors import InputError
from tauten.models.obstacles import obstacles

_registering = threading.Lock()  # cloudpickle has one list of modules for the process


class UnsendableError(InputError):
    """A model holds what no other process can be given, such as an open socket or a lock."""


def dumps(value: Any, placed: Mapping[int, Any] | None = None) -> bytes:
    """Pickle a value for a process that this one started, or that started it.

    Args:
        value: To pickle.
        placed: By identity, what is pickled in the place of an object.
    """
    with _registering, _by_value(_own_modules(len(sys.modules))):
        file = io.BytesIO()
        pickler: Any = _Pickler(file, placed or {})
        pickler.dump(value)
        return file.getvalue()


def loads(pickled: bytes, find: Callable[[Any], Any] | None = None) -> Any:
    """What `dumps` was given; `find` returns an object by what was pickled in its place."""
    unpickler: Any = pickle.Unpickler(io.BytesIO(pickled))
    if find is not None:
        unpickler.persistent_load = find
    return unpickler.load()


def dump_call(value: Any, placed: Mapping[int, Any] | None = None) -> bytes:
    """As `dumps`, of arguments or outputs of a call.

    Raises:
        UnsendableError: Something in them can't be pickled.
    """
    try:
        return dumps(value, placed)
    except Exception as error:  # pickling runs code of whoever wrote what is pickled
        raise UnsendableError(
            f"arguments and outputs of calls on workers are pickled, and these can't be ({error}): "
            "use tensors and plain values"
        ) from error


def send(connection: Connection, message: Any) -> None:
    """Send a message to a process that this one started, or that started it.

    Raises:
        UnsendableError: Something in it can't be pickled.
    """
    connection.send_bytes(dump_call(message))


def receive(connection: Connection) -> Any:
    """The next message; waits for it.

    Raises:
        EOFError: The other process has ended.
    """
    return loads(connection.recv_bytes())


def dump_model(model: nn.Module) -> bytes:
    """Pickle a model.

    Raises:
        UnsendableError: Something in it can't be pickled; the message says where.
    """
    try:
        return dumps(model)
    except Exception as error:  # as above
        raise unsendable(model, error, dumps) from error


def unsendable(
    model: nn.Module, error: Exception, attempt: Callable[[Any], Any]
) -> UnsendableError:
    """The error that names what of a model can't be sent to another process.

    Args:
        model: As a whole it failed.
        error: That it failed by.
        attempt: What was tried, to be tried on its parts.
    """
    culprit = next(obstacles(model, attempt), None)
    what = f"{type(error).__name__}: {error}" if culprit is None else culprit
    return UnsendableError(f"{type(model).__name__} can't be sent to workers: {what}")


class _Pickler(cloudpickle.Pickler):
    """cloudpickle's, with other objects in the place of some, and hooks of packages on their feet.

    cloudpickle gives a function that can't be imported copies of the globals that it uses: a hook
    of a package would then look into another collector than the package does.
    """

    def __init__(self, file: io.BytesIO, placed: Mapping[int, Any]):
        super().__init__(file)  # type: ignore[no-untyped-call]
        self._placed = placed

    def persistent_id(self, value: Any) -> Any:
        """What is pickled in a value's place; None for the value itself."""
        return self._placed.get(id(value))

    def reducer_override(self, value: Any) -> Any:
        """How a value is pickled."""
        if isinstance(value, nn.Module) and is_parametrized(value):
            return _instance, (type(value),), vars(value)  # its class refuses to be pickled by name
        reduced = super().reducer_override(value)  # type: ignore[no-untyped-call]
        is_made = type(value) is FunctionType and reduced is not NotImplemented
        if not is_made or not _is_installed(value.__module__):
            return reduced
        cells = [_content(cell) for cell in value.__closure__ or ()]
        attributes = {"__kwdefaults__": value.__kwdefaults__, "__qualname__": value.__qualname__}
        state = (cells, attributes, dict(vars(value)))
        made_of = (value.__module__, value.__code__, value.__name__, value.__defaults__)
        return _function, made_of, state, None, None, _fill


def _is_installed(name: str) -> bool:
    """Whether workers import a module by its name."""
    return name in sys.modules and name != "__main__" and not _is_own(name, sys.modules[name])


def _content(cell: CellType) -> tuple[Any, ...]:
    """A closure's variable, in a tuple that is empty where it has no value."""
    try:
        return (cell.cell_contents,)
    except ValueError:
        return ()


def _instance(kind: Any) -> Any:
    return kind.__new__(kind)


def _function(module: str, code: CodeType, name: str, defaults: Any) -> FunctionType:
    """A function on a module's globals; its closure is filled later, as it may hold itself."""
    cells = tuple(CellType() for _ in code.co_freevars)
    return FunctionType(code, vars(importlib.import_module(module)), name, defaults, cells)


def _fill(function: FunctionType, state: tuple[Any, dict[str, Any], dict[str, Any]]) -> None:
    contents, attributes, own = state
    for cell, content in zip(function.__closure__ or (), contents, strict=True):
        if content:
            (cell.cell_contents,) = content
    for name, value in attributes.items():
        setattr(function, name, value)
    vars(function).update(own)


@functools.lru_cache(maxsize=1)
def _own_modules(known: int) -> list[ModuleType]:
    """Modules from source files that aren't installed; `known` is how many are imported.

    The main module isn't among them: cloudpickle pickles its code by value anyway.
    """
    return [module for name, module in list(sys.modules.items()) if _is_own(name, module)]


def _is_own(name: str, module: ModuleType) -> bool:
    file, top = getattr(module, "__file__", None), name.partition(".")[0]
    if top in (__name__.partition(".")[0], "__main__") or getattr(module, "__name__", "") != name:
        return False
    if not isinstance(file, str) or not file.endswith(".py"):
        return False
    path = Path(file).resolve()
    editable = _editable_folders().get(top)
    roots = _installed_folders() if editable is None else (*_installed_folders(), editable)
    return not any(path.is_relative_to(root) for root in roots)


@functools.cache
def _installed_folders() -> tuple[Path, ...]:
    names = ("stdlib", "platstdlib", "purelib", "platlib")
    paths = [sysconfig.get_paths()[name] for name in names]
    paths += [*site.getsitepackages(), site.getusersitepackages()]
    return tuple({Path(path).resolve() for path in paths})


@functools.cache
def _editable_folders() -> dict[str, Path]:
    """Folders of packages that are installed in place (`pip install -e`), by packages' names."""
    found = {}
    for distribution in importlib.metadata.distributions():
        origin = json.loads(distribution.read_text("direct_url.json") or "{}")
        if origin.get("dir_info", {}).get("editable"):
            folder = Path(unquote(urlparse(origin["url"]).path)).resolve()
            names = (distribution.read_text("top_level.txt") or "").split()
            found.update(dict.fromkeys(names, folder))
    return found


@contextmanager
def _by_value(modules: list[ModuleType]) -> Iterator[None]:
    """Have cloudpickle pickle code of these modules by value, besides what its user asked for."""
    asked = cloudpickle.list_registry_pickle_by_value()
    new = [module for module in modules if module.__name__ not in asked]
    for module in new:
        cloudpickle.register_pickle_by_value(module)
    try:
        yield
    finally:
        for module in new:
            cloudpickle.unregister_pickle_by_value(module)
