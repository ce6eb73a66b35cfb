"""Names of torch's dtypes, as files and messages have them, and its default."""

import contextlib
from collections.abc import Iterable, Iterator
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


@contextlib.contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Have what names no dtype made in this one, whatever the user's default is."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
