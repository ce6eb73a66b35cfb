"""Join safetensors files into one without holding their tensors in memory."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

from tauten.core.files import whole_file
from tauten.models.safetensors_header import LENGTH_BYTES, Entry, entries_of

CHUNK_BYTES = 2**20


class Joined:
    """The file that several safetensors files make together.

    The library writes from tensors in memory only; the format is a JSON header followed by bytes
    (huggingface.co/docs/safetensors, "Format"), so tensors can be copied under a new header.
    Wide dtypes come first, so that every tensor starts at a multiple of its item size.

    Args:
        parts: Files without a common tensor name.
        metadata: Text pairs for the header.
    """

    def __init__(self, parts: Iterable[Path], metadata: dict[str, str]):
        entries = [entry for part in parts for entry in entries_of(part)]
        self._entries = sorted(entries, key=lambda entry: -_item_bits(entry.dtype))
        self._header = _header(self._entries, metadata)

    @property
    def size_bytes(self) -> int:
        """Exact size of the file."""
        return len(self._header) + self.tensor_bytes

    @property
    def tensor_bytes(self) -> int:
        """Bytes of the tensors alone."""
        return sum(entry.length for entry in self._entries)

    def write(self, out: Path) -> None:
        """Write the file, whole or not at all."""
        with whole_file(out) as opened:
            opened.write(self._header)
            for entry in self._entries:
                with entry.file.open("rb") as source:
                    source.seek(entry.start)
                    _copy(source, opened, entry.length)


def _header(entries: list[Entry], metadata: dict[str, str]) -> bytes:
    """Length and JSON, padded so that the tensors start aligned."""
    header: dict[str, Any] = {"__metadata__": metadata}
    position = 0
    for entry in entries:
        offsets = [position, position + entry.length]
        header[entry.name] = {"dtype": entry.dtype, "shape": entry.shape, "data_offsets": offsets}
        position += entry.length
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % LENGTH_BYTES)
    return len(encoded).to_bytes(LENGTH_BYTES, "little") + encoded


def _item_bits(dtype: str) -> int:
    """Of `BF16`, `C64` or `F8_E4M3` the first number."""
    digits = "".join(c for c in dtype.partition("_")[0] if c.isdigit())
    return int(digits) if digits else 8  # BOOL


def _copy(source: BinaryIO, out: BinaryIO, length: int) -> None:
    while length:
        chunk = source.read(min(length, CHUNK_BYTES))
        if not chunk:
            raise EOFError(f"{source.name} ended early")
        out.write(chunk)
        length -= len(chunk)
