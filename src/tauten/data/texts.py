"""Text from files, folders, JSONL, the datasets library, or what is already in memory."""

import logging
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from tauten.core.errors import InputError
from tauten.core.figures import plural
from tauten.data.documents import Document
from tauten.data.text_files import KINDS, kind_of, read_file

BUILT_IN = "python-docs"
_log = logging.getLogger(__name__)


def load_texts(data: "str | Path | Iterable[str]") -> list[Document]:
    """Read documents.

    Args:
        data: `python-docs` (the language reference that every Python carries), a file, a folder
            of files, a name of the datasets library, or an iterable of strings. A lone text file
            is cut at blank lines or sentence ends into documents of about 4,000 characters; in a
            folder each text file is one document. Of .json (a list or lines), .jsonl, .ndjson,
            .csv and .tsv each row is one: its field `text`, or the only one that is text. All may
            be compressed (.gz, .bz2, .xz).
    Raises:
        InputError: There is no such thing, it isn't UTF-8, or it holds no text.
    """
    if isinstance(data, str | Path):
        documents = _load_named(str(data))
    else:
        documents = [_document(f"text {i}", text) for i, text in enumerate(data, 1)]
    where = data if isinstance(data, str | Path) else "data"
    first = {d.text.strip(): d for d in reversed(documents) if d.text.strip()}
    if not first:
        raise InputError(f"{where}: holds no text")
    kept = [d for d in documents if first.get(d.text.strip()) is d]
    again = sum(1 for d in documents if d.text.strip()) - len(kept)
    if again:
        _log.warning("%s: %s left out, the same as others", where, plural(again, "document"))
    return kept


def _load_named(name: str) -> list[Document]:
    if name == BUILT_IN:
        return _python_docs()
    path = Path(name).expanduser()
    try:
        is_folder, is_file = path.is_dir(), path.is_file()
    except OSError:  # the name is too long
        raise InputError(f"{name[:40]!r}... is no file's name; pass texts as a list") from None
    if is_folder:
        return _load_folder(path)
    if is_file:
        return read_file(path, path.name, cut=True)
    return _load_dataset(name)


def _load_folder(folder: Path) -> list[Document]:
    found = sorted(p for p in folder.rglob("*") if p.is_file() and not p.name.startswith("."))
    files = [file for file in found if kind_of(file) in KINDS]
    if not files:
        raise InputError(f"{folder}: no {', '.join(KINDS)} file in this folder")
    others = Counter(kind_of(file) or file.name for file in found if file not in set(files))
    if others:
        kinds = ", ".join(sorted(others))
        _log.warning("%s: %s left out (%s)", folder, plural(others.total(), "file"), kinds)
    return [d for f in files for d in read_file(f, str(f.relative_to(folder)), cut=False)]


def _python_docs() -> list[Document]:
    from pydoc_data.topics import topics

    return [Document(name, text) for name, text in sorted(topics.items())]


def _load_dataset(name: str) -> list[Document]:
    try:
        import datasets
    except ImportError:
        raise InputError(
            f"{name}: no such file or folder; pass a text file, a folder or {BUILT_IN!r} "
            "(names of the datasets library need: pip install 'tauten[datasets]')"
        ) from None
    try:
        loaded = datasets.load_dataset(name, split="train")
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise InputError(f"{name}: the datasets library can't load it ({error})") from None
    if "text" not in loaded.column_names:
        raise InputError(f"{name}: has no `text` column; it has {loaded.column_names}")
    return [Document(f"{name}:{i}", row["text"]) for i, row in enumerate(loaded, 1)]


def _document(name: str, text: object) -> Document:
    if not isinstance(text, str):
        raise InputError(f"{name} is a {type(text).__name__}; expected a string")
    return Document(name, text)
