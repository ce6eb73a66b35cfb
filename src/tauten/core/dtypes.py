"""Names of torch's dtypes, as files and messages have them."""

from collections.abc import Iterable
from typing import Any

import torch


def dtype_name(dtype: torch.dtype) -> str:
    """Such as `float16`."""
    return str(dtype).removeprefix("torch.")


def dtype_named(name: Any, known: Iterable[torch.dtype]) -> torch.dtype:
    """The dtype of a name.

    Raises:
        ValueError: It is none of those known.
    """
    dtypes = {dtype_name(dtype): dtype for dtype in known}
    if name not in dtypes:
        raise ValueError(f"dtype {name!r}: expected one of {', '.join(dtypes)}")
    return dtypes[name]
