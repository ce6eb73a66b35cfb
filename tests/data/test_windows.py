"""Windows of tokens: each by one document, none lost, few padded."""

import pytest
import torch
from tiny_models import byte_tokenizer

from tauten.core.errors import InputError
from tauten.data.documents import Document
from tauten.data.windows import SHORTEST, TokenBatch, count_tokens, token_batches

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


def test_text_without_a_long_enough_document_is_refused() -> None:
    with pytest.raises(InputError, match=f"fewer than two documents have {SHORTEST} tokens"):
        token_batches(documents_of((15, 3, 0)), byte_tokenizer())
