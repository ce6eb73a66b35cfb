"""The script that called: workers import it where it defines the model's classes."""

import multiprocessing
import os
import pickle
from dataclasses import dataclass
from multiprocessing import spawn
from typing import Any

from torch import nn

from tauten.core.errors import InputError

_EXPLANATION = (
    "the model's classes are defined in the script, so each worker imports the script, and that "
    "calls parallelize again: put what the script does under `if __name__ == '__main__':`, or "
    "define the model in a module of its own"
)

_MARK = "TAUTEN_WORKER_IMPORTS_MAIN"


@dataclass(frozen=True)
class MainModule:
    """Where the main module is found, as `multiprocessing` describes it to spawned processes."""

    preparation: dict[str, Any]

    @classmethod
    def needed_by(cls, pickled: bytes) -> "MainModule | None":
        """The main module, if what is pickled refers to it; else None.

        Raises:
            InputError: It does, and there is no file of it.
        """
        if b"__main__" not in pickled:
            return None
        data = spawn.get_preparation_data("tauten worker")
        if not {"init_main_from_name", "init_main_from_path"} & data.keys():
            raise InputError(
                "the model's classes are defined in an interactive session, which workers can't "
                "import: put them into a file and import that"
            )
        kept = ("sys_path", "dir", "init_main_from_name", "init_main_from_path")
        return cls({key: data[key] for key in kept if key in data})

    def enter(self) -> None:
        """Import it, in a worker."""
        os.environ[_MARK] = "1"
        spawn.prepare(self.preparation)
        del os.environ[_MARK]


def check_guard() -> None:
    """Refuse to start workers of workers.

    Raises:
        InputError: A worker, or a process of `multiprocessing`, is importing the script.
    """
    if os.environ.get(_MARK) or getattr(multiprocessing.current_process(), "_inheriting", False):
        raise InputError(_EXPLANATION)


def guard_is_missing(log: str) -> bool:
    """Whether the log of a worker that ended says so."""
    return _EXPLANATION in log


def missing_guard() -> InputError:
    """The error for the process that the user started."""
    return InputError(_EXPLANATION)


def pickled(model: nn.Module) -> bytes:
    """A module for this process' own workers.

    Raises:
        InputError: Its class can't be imported by another process.
    """
    try:
        return pickle.dumps(model)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise InputError(
            f"{type(model).__name__} can't be sent to workers ({error}): define its classes and "
            "functions at the top of a module, without lambdas, or pass a model folder"
        ) from error
