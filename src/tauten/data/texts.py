"""Text from files, folders, JSONL, the datasets library, or what is already in memory."""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tauten.core.errors import InputError

BUILT_IN = "python-docs"
PIECE_CHARACTERS = 4000  # a lone file is cut into documents of about this length
TEXT_SUFFIXES = (".txt", ".md", ".rst")


@dataclass(frozen=True)
class Document:
    """One independent piece of text; splits never cut through it."""

    name: str
    text: str


def load_texts(data: "str | Path | Iterable[str]") -> list[Document]:
    """Read documents.

    Args:
        data: `python-docs` (the language reference that every Python carries), a text file, a
            .jsonl file with a `text` field, a folder of such files, a name of the datasets
            library, or an iterable of strings. A lone text file is cut at blank lines into
            documents of about 4,000 characters; in a folder each text file is one document.
    Raises:
        InputError: There is no such thing, it isn't UTF-8, or it holds no text.
    """
    if isinstance(data, str | Path):
        documents = _load_named(str(data))
    else:
        documents = [_document(f"text {i}", text) for i, text in enumerate(data, 1)]
    documents = [d for d in documents if d.text.strip()]
    if not documents:
        raise InputError(f"{data if isinstance(data, str | Path) else 'data'}: holds no text")
    return documents


def _load_named(name: str) -> list[Document]:
    if name == BUILT_IN:
        return _python_docs()
    path = Path(name).expanduser()
    try:
        is_folder, is_file = path.is_dir(), path.is_file()
    except OSError:  # the name is too long
        raise InputError(f"{name[:40]!r}... is no file's name; pass texts as a list") from None
    if is_folder:
        suffixes = (*TEXT_SUFFIXES, ".jsonl")
        files = sorted(p for p in path.rglob("*") if p.suffix in suffixes and p.is_file())
        if not files:
            raise InputError(f"{path}: no .txt, .md, .rst or .jsonl file in this folder")
        return [d for f in files for d in _load_file(f, str(f.relative_to(path)), cut=False)]
    if is_file:
        return _load_file(path, path.name, cut=True)
    return _load_dataset(name)


def _load_file(file: Path, name: str, cut: bool) -> list[Document]:
    try:
        text = file.read_text(encoding="utf-8-sig")  # -sig: without the mark some editors put first
    except UnicodeDecodeError as error:
        raise InputError(
            f"{file}: not UTF-8 (byte {error.start}); convert it, e.g. with iconv -t UTF-8"
        ) from None
    if file.suffix == ".jsonl":
        lines = enumerate(text.split("\n"), 1)  # splitlines also cuts at U+2028 inside a string
        return [_json_document(file, name, i, line) for i, line in lines if line.strip()]
    if not cut:
        return [Document(name, text)]
    return [Document(f"{name}#{i}", piece) for i, piece in enumerate(_pieces(text), 1)]


def _json_document(file: Path, name: str, number: int, line: str) -> Document:
    try:
        text = json.loads(line)["text"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{file}:{number}: expected a JSON object with a `text` field") from error
    if not isinstance(text, str):
        raise InputError(f"{file}:{number}: `text` is a {type(text).__name__}; expected a string")
    return Document(f"{name}:{number}", text)


def _pieces(text: str) -> Iterable[str]:
    """Cut at blank lines into pieces of about PIECE_CHARACTERS."""
    piece = ""
    for paragraph in re.split(r"\n\s*\n", text):
        piece += paragraph + "\n\n"
        if len(piece) >= PIECE_CHARACTERS:
            yield piece
            piece = ""
    if piece.strip():
        yield piece


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
