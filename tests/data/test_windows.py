"""Windows of tokens: each by one document, none lost, few padded."""

import pytest
import torch
from tiny_models import byte_tokenizer

from tauten.core.errors import InputError
from tauten.data.documents import Document
from tauten.data.windows import (
    SHORTEST,
    TokenBatch,
    count_tokens,
    judged_window,
    token_batches,
    used,
)


class BeginsTexts:
    """A tokenizer that puts 255 before a text, as Gemma's its `<bos>`, and 254 behind it."""

    def __call__(self, text: str, add_special_tokens: bool = True, verbose: bool = True):  # type: ignore[no-untyped-def]
        ids = byte_tokenizer()(text)["input_ids"]
        return {"input_ids": [255, *ids, 254] if add_special_tokens else ids}


LENGTHS = (5, 16, 40, 100, 131, 64, 15, 200)


def documents_of(lengths: tuple[int, ...]) -> list[Document]:
    """Text whose bytes are the tokens; no two documents share a character."""
    return [Document(str(i), chr(ord("a") + i) * length) for i, length in enumerate(lengths)]


def windows_of(batches: list[TokenBatch]) -> list[tuple[int, list[int]]]:
    return [
        (int(document), ids[:length].tolist())
        for batch in batches
        for ids, length, document in zip(batch.ids, batch.lengths, batch.documents, strict=True)
    ]


def test_windows_are_the_documents_cut_apart() -> None:
    documents, tokenizer = documents_of(LENGTHS), byte_tokenizer()
    found = windows_of(token_batches(documents, tokenizer, window=64, batch_tokens=128))
    expected = []
    for number, document in enumerate(documents):
        ids = tokenizer(document.text)["input_ids"]
        pieces = [ids[i : i + 64] for i in range(0, len(ids), 64)]
        expected += [(number, piece) for piece in pieces if len(piece) >= SHORTEST]
    assert sorted(found) == sorted(expected)


@pytest.mark.parametrize("batch_tokens", [1, 64, 100, 256, 10000])
def test_batches_hold_no_more_than_asked_and_pad_with_zeros(batch_tokens: int) -> None:
    batches = token_batches(documents_of(LENGTHS), byte_tokenizer(), 64, 16384, batch_tokens)
    for batch in batches:
        rows, length = batch.ids.shape
        assert rows == 1 or rows * length <= batch_tokens
        assert length == batch.lengths.max()
        padding = torch.arange(length) >= batch.lengths[:, None]
        assert not batch.ids[padding].any()
    assert count_tokens(batches) == sum(len(ids) for _, ids in windows_of(batches))
    assert count_tokens(batches) == 16 + 40 + (64 + 36) + 2 * 64 + 64 + 3 * 64


@pytest.mark.parametrize(
    ("max_tokens", "window", "counts"),
    [
        (1, 16, [1, 0, 0, 0]),
        (64, 16, [1, 1, 1, 1]),  # shorter windows, so that every document is heard
        (200, 50, [1, 1, 1, 1]),
        (300, 64, [1, 1, 1, 1]),
        (400, 64, [2, 1, 1, 2]),
    ],
)
def test_every_document_gives_a_window_before_any_gives_another(
    max_tokens: int, window: int, counts: list[int]
) -> None:
    documents = documents_of((300, 64, 64, 300))
    batches = token_batches(documents, byte_tokenizer(), window=64, max_tokens=max_tokens)
    assert max_tokens - window < count_tokens(batches) <= max(window, max_tokens)
    assert all(batch.ids.shape[1] == window for batch in batches)
    assert [sum(d == i for d, _ in windows_of(batches)) for i in range(4)] == counts


def test_each_window_begins_as_the_tokenizer_begins_a_text() -> None:
    documents = documents_of((100, 40, 20))
    found = windows_of(token_batches(documents, BeginsTexts(), window=64))
    plain = byte_tokenizer()
    for number, ids in found:
        assert ids[0] == 255 and 255 not in ids[1:] and 254 not in ids and len(ids) <= 64
        assert "".join(plain.decode(ids[1:])) == documents[number].text[: len(ids) - 1]
    assert sorted(len(ids) for _, ids in found) == [21, 38, 41, 64]


def test_a_text_that_begins_so_itself_gets_no_second_beginning() -> None:
    class Begun(BeginsTexts):
        def __call__(self, text: str, add_special_tokens: bool = True, verbose: bool = True):  # type: ignore[no-untyped-def]
            found = super().__call__(text, add_special_tokens)
            return {"input_ids": [255, *found["input_ids"]]} if len(text) > 1 else found

    for _, ids in windows_of(token_batches(documents_of((100, 40)), Begun(), window=64)):
        assert ids[0] == 255 and 255 not in ids[1:]


def test_windows_keep_their_length_however_many_documents_there_are() -> None:
    for count in (10, 100, 1000):
        documents = [Document(str(i), "abcdefgh" * 20) for i in range(count)]
        batches = token_batches(documents, byte_tokenizer(), window=64, max_tokens=1024)
        lengths = torch.cat([batch.lengths for batch in batches])
        assert (len(lengths), set(lengths.tolist())) == (16, {64})
        assert judged_window(count, 1024, 512) == max(256, min(512, 1024 // count))


def test_documents_beyond_the_budget_are_not_even_tokenized() -> None:
    seen: list[str] = []

    class Watched(BeginsTexts):
        def __call__(self, text: str, *args, **options):  # type: ignore[no-untyped-def]
            seen.append(text)
            return super().__call__(text, *args, **options)

    token_batches(documents_of((64,) * 100), Watched(), window=64, max_tokens=640)
    assert len(seen) < 15


def test_what_was_used_is_said() -> None:
    batches = token_batches(documents_of((64,) * 100), byte_tokenizer(), 64, max_tokens=640)
    assert (
        used(batches, 100) == "10 windows of up to 64 tokens from 10 of 100 documents, 640 tokens"
    )


def test_text_without_a_long_enough_document_is_refused() -> None:
    with pytest.raises(InputError, match=f"fewer than two documents have {SHORTEST} tokens"):
        token_batches(documents_of((15, 3, 0)), byte_tokenizer())
