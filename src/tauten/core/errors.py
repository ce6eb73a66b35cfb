"""Errors a user can act on: each message names the thing, what was expected and the remedy."""


class TautenError(Exception):
    """Base of every error that Tauten raises on purpose; the command line exits with code 2."""


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


class WorkerError(TautenError):
    """Worker processes keep ending; the message holds how, and the end of their log."""


def first_line(error: BaseException) -> str:
    """The first line of what an error says; its class where it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
