"""Text from files, folders, JSONL, the datasets library, or what is already in memory."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tauten.core.errors import InputError
from tauten.core.figures import plural
from tauten.core.printing import logger
from tauten.data.documents import Document
from tauten.data.text_files import KINDS, PIECE_CHARACTERS, cut_text, kind_of, read_file
from tauten.data.text_rows import LoadTokenizer, RowTexts, holds_text

BUILT_IN = "python-docs"
_log = logger(__name__)


@dataclass(frozen=True)
class Texts:
    """Documents that were read.

    Attributes:
        name: Of the data, in reports.
        documents: No two are the same, and none is blank.
    """

    name: str
    documents: tuple[Document, ...]


@dataclass(frozen=True)
class _Found:
    """What was found before anything is left out, and what couldn't be read as text."""

    documents: list[Document]
    source: str = ""
    others: str = ""


def is_text(data: Any) -> bool:
    """Whether data is text: a name or path, what was read, or a list that begins with a text."""
    if isinstance(data, np.ndarray):
        return data.dtype.kind in "UO" and data.size > 0 and isinstance(data.flat[0], str)
    first = data[0] if isinstance(data, list | tuple) and data else data
    return isinstance(data, str | Path | Texts) or (first is not data and holds_text(first))


def read_texts(
    data: "str | Path | Iterable[Any] | Texts",
    column: str | None = None,
    load_tokenizer: LoadTokenizer = None,
) -> Texts:
    """Read documents, and say what was read and what was left out.

    Args:
        data: `python-docs` (the language reference that every Python carries), a file, a folder
            of files, a name of the datasets library, or an iterable of strings, chats or rows. A
            lone text is cut at blank lines or sentence ends into documents of about 4,000
            characters; in a folder each text file is one document. Of .json (a list or lines),
            .jsonl, .ndjson, .csv, .tsv and .parquet each row is one. All may be compressed (.gz,
            .bz2, .xz).
        column: Of rows, the one that is text; by default `text`, or the only one.
        load_tokenizer: Gives the tokenizer whose template makes texts of chats; None for none.
    Raises:
        InputError: There is no such thing, it isn't UTF-8, or it holds no text.
    """
    if isinstance(data, Texts):
        return data
    if isinstance(data, str | Path):
        where, found = str(data), _load_named(str(data), column, load_tokenizer)
    else:
        where, found = "texts", _listed(data, column, load_tokenizer)
    kept, left = _sorted_out(found)
    if not kept:
        raise InputError(f"{where}: holds no text{'; left out: ' * bool(left)}{left}")
    size = f"{sum(len(d.text) for d in kept):,} characters"
    said = f"data: {where}: {plural(len(kept), 'document')} of {size}{found.source}"
    if left:
        _log.warning("%s; left out: %s", said, left)
    else:
        _log.info("%s", said)
    return Texts(where, kept)


def _sorted_out(found: _Found) -> tuple[tuple[Document, ...], str]:
    """The documents to keep, and what is left out, in words."""
    first = {d.text.strip(): d for d in reversed(found.documents)}
    kept = tuple(d for d in found.documents if d.text.strip() and first[d.text.strip()] is d)
    blank = sum(not d.text.strip() for d in found.documents)
    again = len(found.documents) - len(kept) - blank
    left = [plural(again, "document") + ", the same as others"] if again else []
    left += [plural(blank, "document") + " without text"] if blank else []
    return kept, "; ".join([*left, *filter(None, [found.others])])


def _listed(data: Iterable[Any], column: str | None, load_tokenizer: LoadTokenizer) -> _Found:
    rows, items = RowTexts(column, load_tokenizer), list(data)
    texts = [rows.text(f"text {i}", item) for i, item in enumerate(items, 1)]
    if len(texts) == 1 and len(texts[0]) > PIECE_CHARACTERS:
        return _Found(cut_text("text 1", texts[0]))
    return _Found([Document(f"text {i}", t) for i, t in enumerate(texts, 1)], _of([rows.column]))


def _of(columns: Iterable[str | None]) -> str:
    """From which columns it was read, as words."""
    names = sorted({f"`{column}`" for column in columns if column})
    return f", from {', '.join(names)}" if names else ""


def _load_named(name: str, column: str | None, load_tokenizer: LoadTokenizer) -> _Found:
    if name == BUILT_IN:
        return _Found(_python_docs())
    path = Path(name).expanduser()
    try:
        is_folder, is_file = path.is_dir(), path.is_file()
    except OSError:  # the name is too long
        raise InputError(f"{name[:40]!r}... is no file's name; pass texts as a list") from None
    if is_folder:
        return _load_folder(path, column, load_tokenizer)
    if is_file:
        rows = RowTexts(column, load_tokenizer)
        documents = read_file(path, path.name, True, rows)
        return _Found(documents, _of([rows.column]))
    return _load_dataset(name, column, load_tokenizer)


def _load_folder(folder: Path, column: str | None, load_tokenizer: LoadTokenizer) -> _Found:
    found = sorted(p for p in folder.rglob("*") if p.is_file() and not p.name.startswith("."))
    files = {f: RowTexts(column, load_tokenizer) for f in found if kind_of(f) in KINDS}
    if not files:
        raise InputError(f"{folder}: no {', '.join(KINDS)} file in this folder")
    documents: list[Document] = []
    for file, rows in files.items():
        documents += read_file(file, str(file.relative_to(folder)), len(files) == 1, rows)
    counts = Counter(kind_of(file) or file.name for file in found if file not in files)
    others = f"{plural(counts.total(), 'file')} ({', '.join(sorted(counts))})" if counts else ""
    source = f" in {plural(len(files), 'file')}" + _of(rows.column for rows in files.values())
    return _Found(documents, source, others)


def _python_docs() -> list[Document]:
    from pydoc_data.topics import topics

    return [Document(name, text) for name, text in sorted(topics.items())]


def _load_dataset(name: str, column: str | None, load_tokenizer: LoadTokenizer) -> _Found:
    try:
        import datasets
    except ImportError:
        raise InputError(
            f"{name}: no such file or folder; pass a file, a folder, {BUILT_IN!r} or a list of "
            "texts (names of the datasets library need: pip install 'tauten[datasets]')"
        ) from None
    try:
        loaded = datasets.load_dataset(name, split="train")
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise InputError(f"{name}: the datasets library can't load it ({error})") from None
    rows = RowTexts(column, load_tokenizer)
    texts = [rows.text(f"{name}:{i}", row) for i, row in enumerate(loaded, 1)]
    documents = [Document(f"{name}:{i}", text) for i, text in enumerate(texts, 1)]
    return _Found(documents, _of([rows.column]))
