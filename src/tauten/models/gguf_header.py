"""The head of a GGUF file: what its fields and tensors are, without reading any of them.

Source: the format's specification, github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

import mmap
import os
import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from tauten.core.errors import CorruptError

MAGIC, VERSIONS = b"GGUF", (2, 3)
UINT32, STRING, ARRAY = 4, 8, 9
NUMBERS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
LONG = 4096  # an array with more items is a vocabulary, not a setting
ALIGNMENT, TOKENS = "general.alignment", "tokenizer.ggml.tokens"


@dataclass(frozen=True)
class Field:
    """One piece of metadata: its bytes in the file, and how many items it has."""

    start: int
    stop: int
    count: int
    value: Any


@dataclass(frozen=True)
class Header:
    """What stands before the tensors of a file.

    Attributes:
        version: Of the format.
        fields: By key.
        tensors: How many there are.
        table: First byte of the table of tensors, and the one after it.
        size_bytes: Of the whole file, as the table says.
    """

    version: int
    fields: dict[str, Field]
    tensors: int
    table: tuple[int, int]
    size_bytes: int

    def write_settings(self, file: Path, out: Path) -> None:
        """Write a file that says the same but for vocabularies, and whose tensors are holes.

        Others read the settings from it in a moment; a vocabulary takes them long.
        """
        kept = [field for field in self.fields.values() if field.count <= LONG]
        size_key = f"{self.fields['general.architecture'].value}.vocab_size"
        added = b""
        if TOKENS in self.fields and size_key not in self.fields:
            key = size_key.encode()
            added = struct.pack("<Q", len(key)) + key
            added += struct.pack("<II", UINT32, self.fields[TOKENS].count)
        with file.open("rb") as source, out.open("wb") as made:
            counts = self.tensors, len(kept) + bool(added)
            made.write(MAGIC + struct.pack("<IQQ", self.version, *counts))
            for start, stop in (*((field.start, field.stop) for field in kept), self.table):
                if (start, stop) == self.table:
                    made.write(added)
                source.seek(start)
                made.write(source.read(stop - start))
            made.truncate(self.size_bytes)


class _Cursor:
    """A place in a file, which moves on as numbers and texts are read."""

    def __init__(self, content: mmap.mmap):
        self.content, self.at = content, 0

    def number(self, code: str) -> Any:
        (value,) = struct.unpack_from(f"<{code}", self.content, self.at)
        self.at += struct.calcsize(f"<{code}")
        return value

    def text(self) -> str:
        length = self.number("Q")
        if length > len(self.content) - self.at:
            raise ValueError("a text reaches beyond its end")
        self.at += length
        return self.content[self.at - length : self.at].decode()

    def value(self, kind: int) -> tuple[int, Any]:
        """How many items there are, and the value if it is one."""
        if kind == STRING:
            return 1, self.text()
        if kind != ARRAY:
            return 1, self.number(NUMBERS[kind])
        item, count = self.number("I"), self.number("Q")
        if item in NUMBERS:
            self.at += count * struct.calcsize(NUMBERS[item])
            return count, None
        if item != STRING:
            raise ValueError(f"an array of type {item}")
        unpack, content, at = struct.Struct("<Q").unpack_from, self.content, self.at
        for _ in range(count):
            at += 8 + unpack(content, at)[0]
        self.at = at
        return count, None


def read_header(file: Path) -> Header:
    """Read the head of a file.

    Raises:
        CorruptError: It is no GGUF, or ends before its tensors do, or has none.
    """
    try:
        with file.open("rb") as opened:
            with mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as content:
                header = _header_in(_Cursor(content))
            if header.size_bytes > os.fstat(opened.fileno()).st_size:
                raise ValueError("its tensors reach beyond its end")
    except (ValueError, KeyError, struct.error, OSError) as error:
        reason = str(error).splitlines()[0]
        raise CorruptError(
            f"{file}: not a whole GGUF file ({reason}); copy or download it again"
        ) from None
    if not header.tensors:
        raise CorruptError(f"{file}: a GGUF without tensors; pass one that holds the weights")
    return header


def _header_in(cursor: _Cursor) -> Header:
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    if cursor.content[:4] != MAGIC:
        raise ValueError("it doesn't begin with GGUF")
    cursor.at = 4
    version, tensors, count = cursor.number("I"), cursor.number("Q"), cursor.number("Q")
    if version not in VERSIONS:
        raise ValueError(f"version {version}, where {VERSIONS} are known")
    fields = {}
    for _ in range(count):
        start, key = cursor.at, cursor.text()
        found = cursor.value(cursor.number("I"))
        fields[key] = Field(start, cursor.at, *found)
    table, end = cursor.at, 0
    for _ in range(tensors):
        cursor.text()
        sizes = [cursor.number("Q") for _ in range(cursor.number("I"))]
        kind, offset = cursor.number("I"), cursor.number("Q")
        per_block, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
        end = max(end, offset + prod(sizes) // per_block * block_bytes)
    alignment = fields[ALIGNMENT].value if ALIGNMENT in fields else 32
    first = -(-cursor.at // alignment) * alignment
    return Header(version, fields, tensors, (table, cursor.at), first + end)
