"""Errors a user can act on: each message names the thing, what was expected and the remedy."""

import traceback
from pathlib import Path
from typing import Any

from tauten.core.printing import printable


class TautenError(Exception):
    """Base of every error that Tauten raises on purpose; the command line exits with code 2.

    Its message is printable, whatever names from files are in it.
    """

    def __init__(self, *args: Any):
        super().__init__(*(printable(arg) if isinstance(arg, str) else arg for arg in args))


class InputError(TautenError, ValueError):
    """An argument, a file or a model is not what the call needs."""


class CorruptError(InputError):
    """A file is damaged: truncated, inconsistent or changed since it was written."""


class NotApplicableError(TautenError):
    """A technique can't be used on this weight or module."""


class GoalError(TautenError):
    """A goal contradicts itself or can't fit the machine; raised before any work starts."""


class BusyError(TautenError):
    """An output folder exists already or another run is writing to it."""


class DiskError(TautenError):
    """Files can't be written: the disk is full, or a folder is read-only or gone."""


class WorkerError(TautenError):
    """Worker processes keep ending; the message holds how, and the end of their log."""


# What is no fault of one trial: the run ends, and its user runs it again.
ENDING = (BusyError, DiskError, WorkerError)


def first_line(error: BaseException) -> str:
    """The first line of what an error says; its class where it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def told(error: Exception) -> str:
    """What an error says; with its class and place where Tauten didn't raise it on purpose."""
    if isinstance(error, TautenError):
        return str(error)
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {first_line(error)}{place}"
