"""Documents from files: plain text, JSON, lines of JSON, and tables; also compressed."""

import bz2
import csv
import gzip
import io
import json
import lzma
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tauten.core.errors import InputError
from tauten.data.documents import Document

PIECE_CHARACTERS = 4000  # a lone file is cut into documents of about this length
_OPENERS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.decompress,
    ".bz2": bz2.decompress,
    ".xz": lzma.decompress,
}
_MARKS = {b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}
_TEXTS = (".txt", ".md", ".rst")
_LINES = (".jsonl", ".ndjson")
_TABLES = {".csv": ",", ".tsv": "\t"}
KINDS = (*_TEXTS, *_LINES, ".json", *_TABLES)


def kind_of(file: Path) -> str:
    """The ending that tells what a file holds, in lower case, without that of its compression."""
    endings = [ending.lower() for ending in file.suffixes]
    return next((ending for ending in reversed(endings) if ending not in _OPENERS), "")


def read_file(file: Path, name: str, cut: bool) -> list[Document]:
    """Documents of a file: a row of JSON or of a table is one.

    Args:
        file: Its ending says what it holds; anything unknown is text.
        name: Of the file, in the names of documents.
        cut: Cut text into several documents; else it is one.
    Raises:
        InputError: It can't be read as what it is named.
    """
    kind, text = kind_of(file), _text_of(file)
    if kind in _LINES or kind == ".json":
        rows = _json_rows(file, text, by_lines=kind in _LINES)
    elif kind in _TABLES:
        rows = _table_rows(file, text, _TABLES[kind])
    else:
        pieces = list(_pieces(text)) if cut else [text]
        return [
            Document(f"{name}#{i}" if cut else name, piece) for i, piece in enumerate(pieces, 1)
        ]
    return [Document(f"{name}:{number}", _column(file, number, row)) for number, row in rows]


def _text_of(file: Path) -> str:
    raw = file.read_bytes()
    opener = _OPENERS.get(file.suffix.lower())
    if opener is not None:
        try:
            raw = opener(raw)
        except (OSError, EOFError, lzma.LZMAError, ValueError) as error:
            raise InputError(f"{file}: can't be decompressed ({error})") from None
    try:  # -sig: without the mark some editors put first
        return raw.decode(_MARKS.get(raw[:2], "utf-8-sig"))
    except UnicodeDecodeError as error:
        raise InputError(
            f"{file}: not UTF-8 (byte {error.start}); convert it, e.g. with iconv -t UTF-8"
        ) from None


def _json_rows(file: Path, text: str, by_lines: bool) -> Iterator[tuple[int, Any]]:
    """Rows with their numbers: lines, or the elements of one list."""
    if not by_lines:
        try:
            whole = json.loads(text)
        except ValueError:
            by_lines = True  # many files of lines are named .json
        else:
            if not isinstance(whole, list):
                kind = type(whole).__name__
                raise InputError(f"{file}: holds one {kind}; expected a list of rows, or lines")
            yield from enumerate(whole, 1)
            return
    for number, line in enumerate(text.split("\n"), 1):  # splitlines also cuts at U+2028
        if line.strip():
            try:
                yield number, json.loads(line)
            except ValueError:
                raise InputError(f"{file}:{number}: not a line of JSON") from None


def _table_rows(file: Path, text: str, delimiter: str) -> Iterator[tuple[int, Any]]:
    csv.field_size_limit(2**31 - 1)  # of characters: a document may be long
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        yield from ((reader.line_num, row) for row in reader)
    except csv.Error as error:
        raise InputError(f"{file}:{reader.line_num}: not a table ({error})") from None


def _column(file: Path, number: int, row: Any) -> str:
    """A row's text: the row itself, its field `text`, or the only one that is a string."""
    if isinstance(row, str):
        return row
    if not isinstance(row, dict):
        raise InputError(f"{file}:{number}: is a {type(row).__name__}; expected a row or a string")
    texts = {key: value for key, value in row.items() if isinstance(value, str)}
    chosen = "text" if "text" in row else next(iter(texts)) if len(texts) == 1 else None
    if chosen is None:
        names = ", ".join(map(str, row)) or "none"
        raise InputError(
            f"{file}:{number}: expected a field `text`, or a single one that is text; the row has "
            f"{names}: name the one to read `text`, or pass texts as a list"
        )
    if not isinstance(row[chosen], str):
        kind = type(row[chosen]).__name__
        raise InputError(f"{file}:{number}: `{chosen}` is a {kind}; expected a string")
    return str(row[chosen])


def _pieces(text: str) -> Iterator[str]:
    """Cut at blank lines into pieces of about PIECE_CHARACTERS; what has none, at sentence ends."""
    piece = ""
    for paragraph in re.split(r"\n\s*\n", text):
        piece += paragraph + "\n\n"
        if len(piece) >= PIECE_CHARACTERS:
            yield from _short_pieces(piece)
            piece = ""
    if piece.strip():
        yield piece


def _short_pieces(piece: str) -> Iterator[str]:
    short = ""
    for sentence in re.findall(r".+?(?:[.!?]\s+|\n|$)", piece, re.DOTALL):
        if short and len(short) + len(sentence) > 2 * PIECE_CHARACTERS:
            yield short
            short = ""
        short += sentence
    yield short
