"""Where each tensor lies in a safetensors file (huggingface.co/docs/safetensors, "Format")."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tauten.core.description import parse_json
from tauten.core.errors import InputError

LENGTH_BYTES = 8  # of the number that says how long the header is
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": torch.float8_e8m0fnu,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "C64": torch.complex64,
}


@dataclass(frozen=True)
class Entry:
    """A tensor of a file: its name, header entry, and bytes in the file."""

    name: str
    dtype: str
    shape: list[int]
    file: Path
    start: int
    length: int

    def content(self) -> bytearray:
        """The bytes of the tensor.

        Raises:
            OSError: The file has changed.
        """
        content = bytearray(self.length)
        with self.file.open("rb") as opened:
            opened.seek(self.start)
            if opened.readinto(content) != self.length:
                raise OSError("it ends early")
        return content

    def read(self) -> Tensor:
        """The tensor, in memory of its own.

        Raises:
            OSError, RuntimeError: The file has changed.
            InputError: Its dtype isn't one of torch's.
        """
        if self.dtype not in DTYPES:
            known = ", ".join(DTYPES)
            raise InputError(f"it is of dtype {self.dtype}, none of {known}: convert it")
        content = self.content()
        if not content:
            return torch.empty(self.shape, dtype=DTYPES[self.dtype])
        return torch.frombuffer(content, dtype=DTYPES[self.dtype]).view(self.shape)


def entries_of(file: Path) -> list[Entry]:
    """All tensors of a file that `safetensors` has found whole, in the order of its header."""
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(LENGTH_BYTES), "little")
        header: dict[str, Any] = parse_json(opened.read(length), str(file), "get it anew")
    body = LENGTH_BYTES + length
    entries = []
    for name, tensor in header.items():
        if name != "__metadata__":
            start, stop = tensor["data_offsets"]
            place = (file, body + start, stop - start)
            entries.append(Entry(name, tensor["dtype"], tensor["shape"], *place))
    return entries
