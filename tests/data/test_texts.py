"""Text from everywhere, and what is wrong with it by file and line."""

import bz2
import contextlib
import csv
import gzip
import io
import json
import logging
import lzma
import sys
from pathlib import Path
from typing import Any

import pytest
from tiny_models import byte_tokenizer

from tauten.core.errors import InputError
from tauten.data.documents import Document
from tauten.data.text_files import PIECE_CHARACTERS
from tauten.data.texts import BUILT_IN, read_texts

PACKINGS = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}


def load_texts(*args: Any, **options: Any) -> list[Document]:
    return list(read_texts(*args, **options).documents)


def test_python_docs_are_many_distinct_documents() -> None:
    documents = load_texts(BUILT_IN)
    assert len(documents) >= 50
    assert len({d.name for d in documents}) == len(documents)
    assert sum(len(d.text) for d in documents) > 200_000
    assert documents == load_texts(BUILT_IN)


def test_strings_in_memory() -> None:
    assert load_texts(iter(["a", " \n", "b"])) == [Document("text 1", "a"), Document("text 3", "b")]


@pytest.mark.parametrize("wrong", [b"bytes", 5, None, ["nested"]])
def test_what_is_no_string_is_refused_by_number(wrong: object) -> None:
    with pytest.raises(InputError, match=f"text 2: is a {type(wrong).__name__}"):
        load_texts(["a", wrong])


def test_a_lone_file_is_cut_at_blank_lines_and_nothing_is_lost(tmp_path: Path) -> None:
    paragraphs = [f"paragraph {i} " + "word " * (i % 90) for i in range(200)]
    (tmp_path / "book.txt").write_text("\n\n".join(paragraphs))
    documents = load_texts(tmp_path / "book.txt")
    joined = "".join(document.text for document in documents)
    assert [p for p in joined.split("\n\n") if p] == paragraphs
    assert [d.name for d in documents] == [f"book.txt#{i + 1}" for i in range(len(documents))]
    longest = max(len(p) for p in paragraphs)
    lengths = [len(document.text) for document in documents]
    assert all(PIECE_CHARACTERS <= n < PIECE_CHARACTERS + longest + 2 for n in lengths[:-1])


def test_a_folder_is_one_document_a_text_file_and_one_a_json_line(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "same.txt").write_text("two\n\n" * PIECE_CHARACTERS)
    (tmp_path / "same.txt").write_text("one")
    (tmp_path / "x.md").write_text("three")
    (tmp_path / "y.jsonl").write_text('{"text": "four"}\n\n{"text": "five"}\n')
    (tmp_path / "ignored.bin").write_bytes(b"\xff")
    (tmp_path / "folder.txt").mkdir()
    found = {document.name: document.text[:5].strip() for document in load_texts(tmp_path)}
    assert found == {
        str(Path("b") / "same.txt"): "two",
        "same.txt": "one",
        "x.md": "three",
        "y.jsonl:1": "four",
        "y.jsonl:3": "five",
    }


def test_json_lines_hold_any_character(tmp_path: Path) -> None:
    texts = [
        "plain",
        "line\u2028separator",
        "next\u0085line",
        "tab\tand\nnewline",
        "ü 漢 🙂",
        "\x1c",
    ]
    lines = [json.dumps({"text": text}, ensure_ascii=False) for text in texts]
    file = tmp_path / "x.jsonl"
    file.write_bytes(("\r\n".join(lines) + "\r\n  \r\n").encode())
    assert [document.text for document in load_texts(file)] == texts[:-1]  # \x1c is blank


@pytest.mark.parametrize("name", ["x.jsonl", "x.txt"])
def test_a_byte_order_mark_is_no_text(tmp_path: Path, name: str) -> None:
    content = '{"text": "a"}' if name == "x.jsonl" else "a"
    (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + content.encode())
    assert load_texts(tmp_path / name)[0].text.strip() == "a"


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("{broken", "not a line of JSON"),
        ('{"title": "a", "body": "b"}', "the row has title, body"),
        ('["text"]', "is a list"),
        ("3", "is a int"),
        ('{"text": 3}', "`text` is a int"),
    ],
)
@pytest.mark.parametrize("name", ["x.jsonl", "x.NDJSON", "x.json"])
def test_a_damaged_json_line_is_named(tmp_path: Path, name: str, line: str, why: str) -> None:
    file = tmp_path / name
    file.write_text(f'{{"text": "a"}}\n{line}\n')
    with pytest.raises(InputError, match=rf"{name}:2: .*{why}"):
        load_texts(file)


ROWS = ["one, with a comma", "two\nlines", 'a "quoted" third']


def as_table(delimiter: str) -> str:
    file = io.StringIO()
    table = csv.writer(file, delimiter=delimiter)
    table.writerows([["id", "text"], *enumerate(ROWS)])
    return file.getvalue()


FILES = {
    "rows.json": json.dumps([{"text": row, "id": 1} for row in ROWS]),
    "strings.json": json.dumps(ROWS),
    "lines.json": "\n".join(json.dumps({"content": row}) for row in ROWS),
    "lines.NDJSON": "\r\n\r\n".join(json.dumps({"text": row}) for row in ROWS),
    "rows.csv": as_table(","),
    "rows.TSV": as_table("\t"),
}


@pytest.mark.parametrize("packing", ["", *PACKINGS])
@pytest.mark.parametrize("name", FILES)
def test_rows_are_documents_in_any_file(tmp_path: Path, name: str, packing: str) -> None:
    pack = {"": bytes, **PACKINGS}[packing]
    file = tmp_path / f"{name}{packing}"
    file.write_bytes(pack(FILES[name].encode()))
    assert [document.text for document in load_texts(file)] == ROWS
    assert [document.text for document in load_texts(tmp_path)] == ROWS


def test_utf_16_is_read_and_what_is_damaged_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("wide", encoding="utf-16")
    assert load_texts(tmp_path / "a.txt")[0].text.strip() == "wide"
    (tmp_path / "b.txt.gz").write_bytes(b"no gzip at all")
    with pytest.raises(InputError, match="can't be decompressed"):
        load_texts(tmp_path / "b.txt.gz")
    (tmp_path / "c.json").write_text('{"text": "one"}')
    with pytest.raises(InputError, match="holds one dict; expected a list of rows, or lines"):
        load_texts(tmp_path / "c.json")


@pytest.mark.parametrize("packing", PACKINGS)
def test_a_compressed_text_that_is_damaged_anywhere_is_refused(
    tmp_path: Path, packing: str
) -> None:
    whole, file = PACKINGS[packing](b"Some words. " * 20), tmp_path / f"a.txt{packing}"
    for place in range(len(whole)):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
        with contextlib.suppress(InputError):
            load_texts(file)


def test_a_text_without_blank_lines_is_cut_at_sentence_ends(tmp_path: Path) -> None:
    text = "".join(f"Sentence {i} of a book without blank lines. " for i in range(2000))
    (tmp_path / "book.txt").write_text(text)
    documents = load_texts(tmp_path / "book.txt")
    assert len(documents) > 10 and "".join(d.text for d in documents).strip() == text.strip()
    assert all(len(d.text) <= 2 * PIECE_CHARACTERS for d in documents)
    assert all(d.text.strip().endswith(".") for d in documents)


def test_what_stands_there_twice_counts_once(caplog: pytest.LogCaptureFixture) -> None:
    assert [d.text for d in load_texts(["a", "b", "a ", "b", "c"])] == ["a", "b", "c"]
    assert "left out: 2 documents, the same as others" in caplog.text


def test_files_of_other_kinds_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "b.png").write_bytes(b"x")
    assert len(load_texts(tmp_path)) == 1
    assert "left out: 1 file (.png)" in caplog.text


@pytest.mark.parametrize("name", ["x.txt", "x.jsonl"])
def test_what_is_not_utf_8_is_named_with_its_place_and_remedy(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes("abc é".encode("latin-1"))
    for data in (tmp_path, tmp_path / name):
        with pytest.raises(InputError, match=rf"{name}: not UTF-8 \(byte 4\).*iconv"):
            load_texts(data)


@pytest.mark.parametrize("content", ["", " \n\n\t", "\ufeff"])
def test_a_file_without_text_is_refused(tmp_path: Path, content: str) -> None:
    file = tmp_path / "empty.txt"
    file.write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=r"empty\.txt: holds no text"):
        load_texts(file)


def test_no_texts_are_refused() -> None:
    with pytest.raises(InputError, match="holds no text"):
        load_texts([])


def test_a_folder_without_text_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_text("a")
    with pytest.raises(InputError, match=r"no \.txt"):
        load_texts(tmp_path)


def test_text_in_place_of_a_name_is_refused_in_short() -> None:
    with pytest.raises(InputError, match="pass texts as a list") as caught:
        load_texts("some words " * 500)
    assert len(str(caught.value)) < 120


CHAT = [{"role": "user", "content": "Hello?"}, {"role": "assistant", "content": "Yes."}]
TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
RENDERED = "<user>Hello?<assistant>Yes."


def chatty(template: str | None = TEMPLATE) -> Any:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template
    return tokenizer


@pytest.mark.parametrize(
    "data", [[CHAT], [{"messages": CHAT}], [{"conversations": CHAT, "id": "x"}], [{"text": CHAT}]]
)
def test_chats_go_through_the_template(data: Any, tmp_path: Path) -> None:
    assert [d.text for d in load_texts(data, load_tokenizer=chatty)] == [RENDERED]
    (tmp_path / "x.jsonl").write_text(json.dumps(data[0]))
    assert [d.text for d in load_texts(tmp_path / "x.jsonl", load_tokenizer=chatty)] == [RENDERED]


def test_chats_without_a_template_or_against_it_are_refused() -> None:
    for load in (None, lambda: chatty(None)):
        with pytest.raises(InputError, match=r"text 1: is a chat, .* no chat template"):
            load_texts([CHAT], load_tokenizer=load)
    with pytest.raises(InputError, match=r"text 1: the chat template refuses it \(no user first"):
        load_texts([CHAT], load_tokenizer=lambda: chatty("{{ raise_exception('no user first') }}"))
    with pytest.raises(InputError, match=r"text 1: the chat template refuses it \('bool' object"):
        load_texts([CHAT], load_tokenizer=lambda: chatty("{% for m in true %}{% endfor %}"))


def test_a_column_is_read_by_its_name(tmp_path: Path) -> None:
    rows = [{"title": f"t{i}", "body": f"b{i}", "text": f"x{i}"} for i in range(3)]
    file = tmp_path / "rows.json"
    file.write_text(json.dumps(rows))
    for data in (rows, file, tmp_path):
        assert [d.text for d in load_texts(data, "body")] == ["b0", "b1", "b2"]
        assert [d.text for d in load_texts(data)] == ["x0", "x1", "x2"]
        with pytest.raises(InputError, match="expected a field `bodies`; the row has title, body"):
            load_texts(data, "bodies")


def test_the_only_column_of_words_is_found_once_for_all_rows(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("id,review,stars\n1,good,5\n2,7,1\n")
    assert [d.text for d in load_texts(tmp_path / "a.csv")] == ["good", "7"]
    with pytest.raises(InputError, match="text 2: expected a field `a`; the row has b: pass text_"):
        load_texts([{"a": "x"}, {"b": "y"}])


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_tables_of_spreadsheets_have_their_own_delimiters(tmp_path: Path, delimiter: str) -> None:
    (tmp_path / "a.csv").write_text(as_table(delimiter))
    assert [d.text for d in load_texts(tmp_path / "a.csv")] == ROWS


@pytest.mark.parametrize("row", ["2,b, and more", "2"])
def test_rows_of_other_columns_than_the_header_are_refused(tmp_path: Path, row: str) -> None:
    (tmp_path / "a.csv").write_text(f"id,text\n1,a\n{row}\n")
    with pytest.raises(InputError, match=r"a\.csv:3: the row has other columns than.* id, text"):
        load_texts(tmp_path / "a.csv")


def test_parquet_is_read(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    table = pyarrow.table({"id": [1, 2, 3], "title": ["t", "u", "v"], "text": ROWS})
    pytest.importorskip("pyarrow.parquet").write_table(table, tmp_path / "a.parquet")
    assert [d.text for d in load_texts(tmp_path / "a.parquet")] == ROWS
    assert [d.text for d in load_texts(tmp_path, "title")] == ["t", "u", "v"]
    (tmp_path / "b.parquet").write_bytes(b"none")
    with pytest.raises(InputError, match=r"b\.parquet: can't be read as parquet"):
        load_texts(tmp_path / "b.parquet")
    content = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "c.parquet").write_bytes(content.replace(b"text", b"te\x93t"))
    with pytest.raises(InputError, match=r"c\.parquet: can't be read as parquet"):
        load_texts(tmp_path / "c.parquet")


def test_parquet_without_its_library_names_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    with pytest.raises(InputError, match=r"a\.parquet: .*pip install 'tauten\[parquet\]'"):
        load_texts(tmp_path / "a.parquet")


def test_a_binary_file_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(b"abc\0\1\2")
    with pytest.raises(InputError, match=r"model\.bin: isn't text \(byte 3 is 0\)"):
        load_texts(tmp_path / "model.bin")


def test_a_text_without_sentences_is_cut_at_words_and_one_without_words_anyhow() -> None:
    words = "".join(f"word{i} " for i in range(9000))
    for text in (words, words.replace(" ", ""), words.replace(" ", "\u3002")):
        documents = load_texts([text])
        assert len(documents) > 4 and "".join(d.text for d in documents).strip() == text.strip()
        assert all(len(d.text) <= 2 * PIECE_CHARACTERS for d in documents)
    assert all(d.text.endswith(" ") for d in load_texts([words])[:-1])
    assert all(d.text.strip()[-1] == "\u3002" for d in load_texts([words.replace(" ", "\u3002")]))


def test_what_was_read_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    (tmp_path / "a.jsonl").write_text('{"text": "four"}\n{"text": "five"}\n{"text": "four"}\n')
    load_texts(tmp_path / "a.jsonl")
    (tmp_path / "b.txt").write_text("")
    (tmp_path / "c.md").write_text("six")
    (tmp_path / "d.png").write_text("six")
    load_texts(tmp_path)
    again = "left out: 1 document, the same as others"
    assert caplog.messages == [
        f"data: {tmp_path / 'a.jsonl'}: 2 documents of 8 characters, from `text`; {again}",
        f"data: {tmp_path}: 3 documents of 11 characters in 3 files, from `text`; {again}; "
        "1 document without text; 1 file (.png)",
    ]


def test_rows_without_text_are_left_out_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "tauten")
    found = read_texts([{"text": None, "id": 1}, {"text": "a tale", "id": 2}])
    assert [document.text for document in found.documents] == ["a tale"]
    assert "left out: 1 document without text" in caplog.text


@pytest.mark.parametrize("coding", ["utf-8-sig", "utf-16", "utf-32"])
def test_a_mark_says_how_text_is_encoded(tmp_path: Path, coding: str) -> None:
    file = tmp_path / "a.txt"
    file.write_bytes("Grüße aus Köln".encode(coding))
    assert read_texts(file).documents[0].text.strip() == "Grüße aus Köln"
