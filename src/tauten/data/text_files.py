"""Documents from files: text, JSON, lines of JSON, tables and parquet; also compressed."""

import bz2
import csv
import gzip
import io
import json
import lzma
import re
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tauten.core.errors import InputError, first_line
from tauten.data.documents import Document
from tauten.data.text_rows import RowTexts

PIECE_CHARACTERS = 4000  # a lone file is cut into documents of about this length
# A sentence to its end, or what is as long as a piece to the end of a word, or as it is.
_SENTENCE = re.compile(
    rf".{{1,{PIECE_CHARACTERS}}}?(?:[.!?]\s+|[\u3002\uff01\uff1f]|\n|$)"
    rf"|.{{1,{PIECE_CHARACTERS}}}\s|.{{1,{PIECE_CHARACTERS}}}",
    re.DOTALL,
)
_OPENERS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.decompress,
    ".bz2": bz2.decompress,
    ".xz": lzma.decompress,
}
_MARKS = {  # the first two begin as the others do
    b"\xff\xfe\0\0": "utf-32",
    b"\0\0\xfe\xff": "utf-32",
    b"\xff\xfe": "utf-16",
    b"\xfe\xff": "utf-16",
}
_TEXTS = (".txt", ".md", ".rst")
_LINES = (".jsonl", ".ndjson")
_TABLES = (".csv", ".tsv")
_PARQUET = (".parquet", ".pq")
_DELIMITERS = ",;\t|"  # of .csv files, which are those of spreadsheets too
KINDS = (*_TEXTS, *_LINES, ".json", *_TABLES, *_PARQUET)


def kind_of(file: Path) -> str:
    """The ending that tells what a file holds, in lower case, without that of its compression."""
    endings = [ending.lower() for ending in file.suffixes]
    return next((ending for ending in reversed(endings) if ending not in _OPENERS), "")


def read_file(file: Path, name: str, cut: bool, rows: RowTexts) -> list[Document]:
    """Documents of a file: a row of JSON or of a table is one.

    Args:
        file: Its ending says what it holds; anything unknown is text.
        name: Of the file, in the names of documents.
        cut: Cut text into several documents; else it is one.
        rows: Takes the text out of its rows.
    Raises:
        InputError: It can't be read as what it is named.
    """
    kind = kind_of(file)
    if kind in _PARQUET:
        found = _parquet_rows(file)
    elif kind in _LINES or kind == ".json":
        found = _json_rows(file, _text_of(file), by_lines=kind in _LINES)
    elif kind in _TABLES:
        found = _table_rows(file, _text_of(file), kind)
    else:
        text = _text_of(file)
        return cut_text(name, text) if cut else [Document(name, text)]
    return [
        Document(f"{name}:{number}", rows.text(f"{file}:{number}", row)) for number, row in found
    ]


def cut_text(name: str, text: str) -> list[Document]:
    """Documents of about PIECE_CHARACTERS, of a text that is alone."""
    return [Document(f"{name}#{i}", piece) for i, piece in enumerate(_pieces(text), 1)]


def _text_of(file: Path) -> str:
    raw = file.read_bytes()
    opener = _OPENERS.get(file.suffix.lower())
    if opener is not None:
        try:
            raw = opener(raw)
        except (OSError, EOFError, zlib.error, lzma.LZMAError, ValueError) as error:
            raise InputError(f"{file}: can't be decompressed ({error})") from None
    coding = next((name for mark, name in _MARKS.items() if raw.startswith(mark)), "utf-8-sig")
    if coding == "utf-8-sig" and b"\0" in raw:
        raise InputError(
            f"{file}: isn't text (byte {raw.index(0)} is 0); expected {', '.join(KINDS)}"
        )
    try:  # -sig: without the mark some editors put first
        return raw.decode(coding)
    except UnicodeDecodeError as error:
        raise InputError(
            f"{file}: not {coding.removesuffix('-sig').upper()} (byte {error.start}); convert it, "
            "e.g. with iconv -t UTF-8"
        ) from None


def _json_rows(file: Path, text: str, by_lines: bool) -> Iterator[tuple[int, Any]]:
    """Rows with their numbers: lines, or the elements of one list."""
    if not by_lines:
        try:
            whole = json.loads(text)
        except (ValueError, RecursionError):
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
            except (ValueError, RecursionError):
                raise InputError(f"{file}:{number}: not a line of JSON") from None


def _table_rows(file: Path, text: str, kind: str) -> Iterator[tuple[int, Any]]:
    csv.field_size_limit(2**31 - 1)  # of characters: a document may be long
    header = text.lstrip().partition("\n")[0]
    delimiter = "\t" if kind == ".tsv" else max(_DELIMITERS, key=header.count)
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        for row in reader:
            if None in row or None in row.values():
                raise InputError(
                    f"{file}:{reader.line_num}: the row has other columns than the header, "
                    f"{', '.join(reader.fieldnames or ())}: quote texts that hold {delimiter!r}"
                )
            yield reader.line_num, row
    except csv.Error as error:
        raise InputError(f"{file}:{reader.line_num}: not a table ({error})") from None


def _parquet_rows(file: Path) -> Iterator[tuple[int, Any]]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise InputError(f"{file}: reading it needs: pip install 'tauten[parquet]'") from None
    try:
        rows = parquet.read_table(file).to_pylist()
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file}: can't be read as parquet ({first_line(error)})") from None
    yield from enumerate(rows, 1)


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
    for sentence in _SENTENCE.findall(piece):
        if short and len(short) + len(sentence) > 2 * PIECE_CHARACTERS:
            yield short
            short = ""
        short += sentence
    yield short
