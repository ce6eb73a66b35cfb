"""What of a model can't be copied, or sent to another process."""

import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import nn

from tauten.core.errors import InputError


def uncopied(model: nn.Module, error: Exception, memo: Mapping[int, Any]) -> InputError:
    """The error that names what of a model can't be copied.

    Args:
        model: As a whole it failed.
        error: That it failed by.
        memo: What stands for some of its objects in the copy.
    """
    where = next(obstacles(model, lambda value: copy.deepcopy(value, dict(memo))), str(error))
    return InputError(
        f"{type(model).__name__} can't be copied: {where}; take it out of the model, or give the "
        "class that holds it a __deepcopy__"
    )


def obstacles(model: nn.Module, attempt: Callable[[Any], Any]) -> Iterator[str]:
    """Classes and attributes that fail by themselves, and why.

    Args:
        model: As a whole it failed.
        attempt: What was tried, to be tried on its parts.
    """
    for name, module in model.named_modules():
        parts = {f"{name}.{key}".lstrip("."): value for key, value in vars(module).items()}
        for own in ("_modules", "_parameters", "_buffers"):
            del parts[f"{name}.{own}".lstrip(".")]
        code = f"what the code of class {type(module).__name__} uses"
        for part, value in {code: type(module), **parts}.items():
            try:
                attempt(value)
            except Exception as error:  # it runs code of whoever wrote the model
                yield f"{part} ({error})"
