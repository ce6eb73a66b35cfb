"""Forms of texts, in files and in memory, for bench/data_forms.py."""

import bz2
import csv
import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from data_form_cases import (
    BOOK,
    ROWS,
    TEXTS,
    Form,
    encoder,
    language_model,
    tokenizer,
    trained_gpt,
)

CHATS = [
    [{"role": "user", "content": text}, {"role": "assistant", "content": "Thanks."}]
    for text in TEXTS
]


def table(delimiter: str, header: str = "text") -> str:
    file = io.StringIO()
    csv.writer(file, delimiter=delimiter).writerows(
        [["id", header, "label"], *([i, text, i % 3] for i, text in enumerate(TEXTS))]
    )
    return file.getvalue()


def file_of(name: str, content: str | bytes) -> Callable[[Path], str]:
    def write(folder: Path) -> str:
        raw = content.encode() if isinstance(content, str) else content
        (folder / name).write_bytes(raw)
        return str(folder / name)

    return write


def parquet(folder: Path) -> str:
    import pyarrow
    from pyarrow import parquet as files

    files.write_table(pyarrow.table({"id": list(range(ROWS)), "text": TEXTS}), folder / "a.parquet")
    return str(folder / "a.parquet")


def several_kinds(folder: Path) -> str:
    for name, content in (("a.txt", TEXTS[0]), ("b.csv", table(",")), ("d.md", "")):
        (folder / name).write_text(content)
    (folder / "c.jsonl").write_text(lines({"text": text} for text in TEXTS[:30]))
    (folder / "e.png").write_bytes(b"\x89PNG")
    return str(folder)


def lines(rows: Any) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def text_forms() -> list[Form]:
    texts, book = lines({"text": text} for text in TEXTS), "".join(BOOK)
    kinds: list[tuple[str, Callable[[Path], Any], dict[str, Any]]] = [
        ("list of strings", lambda _: TEXTS, {}),
        ("list of dicts", lambda _: [{"text": text, "label": 1} for text in TEXTS], {}),
        ("chats", lambda _: CHATS, {}),
        ("array of strings", lambda _: np.array(TEXTS), {}),
        (".txt", file_of("a.txt", "\n\n".join(BOOK)), {}),
        (".md in UTF-16", file_of("a.md", "\n\n".join(BOOK).encode("utf-16")), {}),
        (".json, a list", file_of("a.json", json.dumps([{"text": text} for text in TEXTS])), {}),
        (".jsonl", file_of("a.jsonl", texts), {}),
        (".JSONL with CRLF", file_of("a.JSONL", texts.replace("\n", "\r\n")), {}),
        (".ndjson with a mark", file_of("a.ndjson", b"\xef\xbb\xbf" + texts.encode()), {}),
        ("chats in .jsonl", file_of("a.jsonl", lines({"messages": chat} for chat in CHATS)), {}),
        (".csv", file_of("a.csv", table(",")), {}),
        (".csv with semicolons", file_of("a.csv", table(";")), {}),
        (".tsv, column named", file_of("a.tsv", table("\t", "body")), {"text_column": "body"}),
        (".parquet", parquet, {}),
        (".jsonl.gz", file_of("a.jsonl.gz", gzip.compress(texts.encode())), {}),
        (".txt.bz2", file_of("a.txt.bz2", bz2.compress("\n\n".join(BOOK).encode())), {}),
        ("folder of several kinds", several_kinds, {}),
        ("one long line", file_of("a.txt", book), {}),
        ("one long text without a sentence", file_of("a.txt", book.replace(".", "")), {}),
        ("one long string in a list", lambda _: [book], {}),
    ]
    refused: list[tuple[str, Callable[[Path], Any]]] = [
        ("a string that is no file", lambda _: TEXTS[0]),
        ("empty file", file_of("a.txt", "")),
        ("binary file", file_of("a.bin", b"\x00\x01abc\x00" * 90)),
        ("several columns, none named", file_of("a.jsonl", lines([{"a": "x", "b": "y"}]))),
    ]
    own = {"tokenizer": tokenizer()}
    return [
        *(Form(name, language_model, data, {**own, **more}) for name, data, more in kinds),
        *(Form(name, language_model, data, own, refused=True) for name, data in refused),
        Form("texts, no tokenizer", language_model, lambda _: TEXTS, refused=True),
        Form("texts, encoder", encoder, lambda _: TEXTS, own),
        Form("nanoGPT, texts", trained_gpt, lambda _: TEXTS, own),
    ]
