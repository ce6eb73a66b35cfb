"""What a reader of files is to the campaign."""

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Reader:
    """Something that reads files.

    Attributes:
        name: In tables, and of its cases' seeds.
        make: Writes a tiny valid input into a folder that is to be made.
        read: Everything that a user could see of that folder, as data that can be compared.
        files: Names of those to damage; all by default.
        vouched: Digests cover every byte, so that damage is refused or changes nothing.
        same: Whether what was seen is what should be.
        seal: Puts digests right after the damage, as who forges a file would.
    """

    name: str
    make: Callable[[Path], object]
    read: Callable[[Path], Any]
    files: tuple[str, ...] = ()
    vouched: bool = False
    same: Callable[[Any, Any], bool] = operator.eq
    seal: Callable[[Path], None] | None = None

    def damaged_names(self, whole: Mapping[str, bytes]) -> list[str]:
        """Names of files that are damaged, each as likely as another."""
        return sorted(self.files or whole)


def plain(value: Any) -> Any:
    """Data that is equal just where two values are the same to the bit."""
    if isinstance(value, Tensor):
        tensor = value.detach().cpu().contiguous()
        return str(tensor.dtype), tuple(tensor.shape), tensor.numpy().tobytes()
    if isinstance(value, float):
        return value.hex()  # NaN is NaN
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in fields(value)}
    return value
