"""Objects on their way to and from our own workers: code that isn't installed goes by value.

A class or function of an installed package is pickled by its name, and workers import the package.
One of a script, a notebook or a file beside the script is pickled with its code (cloudpickle), so
that no script is imported again: importing it would run it.
"""

import functools
import importlib.metadata
import json
import pickle
import site
import sys
import sysconfig
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import unquote, urlparse

import cloudpickle
from torch import nn

from tauten.core.errors import InputError

_registering = threading.Lock()  # cloudpickle has one list of modules for the process


class UnsendableError(InputError):
    """A model holds what no other process can be given, such as an open socket or a lock."""


def dumps(value: Any) -> bytes:
    """Pickle a value for a process that this one started, or that started it."""
    with _registering, _by_value(_own_modules(len(sys.modules))):
        made: bytes = cloudpickle.dumps(value)
        return made


def loads(pickled: bytes) -> Any:
    """What `dumps` was given."""
    return pickle.loads(pickled)


def send(connection: Connection, message: Any) -> None:
    """Send a message to a process that this one started, or that started it.

    Raises:
        UnsendableError: Something in it can't be pickled.
    """
    try:
        made = dumps(message)
    except Exception as error:  # pickling runs code of whoever wrote what is pickled
        raise UnsendableError(
            f"arguments and outputs of calls on workers are pickled, and these can't be ({error}): "
            "use tensors and plain values"
        ) from error
    connection.send_bytes(made)


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
    culprit = next(_obstacles(model, attempt), None)
    what = f"{type(error).__name__}: {error}" if culprit is None else culprit
    return UnsendableError(f"{type(model).__name__} can't be sent to workers: {what}")


def _obstacles(model: nn.Module, attempt: Callable[[Any], Any]) -> Iterator[str]:
    """Classes and attributes that fail by themselves, and why."""
    for name, module in model.named_modules():
        parts = {f"{name}.{key}".lstrip("."): value for key, value in vars(module).items()}
        for own in ("_modules", "_parameters", "_buffers"):
            del parts[f"{name}.{own}".lstrip(".")]
        code = f"what the code of class {type(module).__name__} uses"
        for part, value in {code: type(module), **parts}.items():
            try:
                attempt(value)
            except Exception as error:  # as above
                yield f"{part} ({error})"


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
