"""Token windows of documents, batched for a language model."""

import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tauten.core.errors import InputError
from tauten.data.documents import Document

ENCODER_TOKENS = 128  # an encoder's text is cut here
ENCODER_ROWS = 16
SHORTEST = 16  # tokens; a shorter piece says little and costs a forward pass


@dataclass(frozen=True)
class TokenBatch:
    """Windows of tokens, padded on the right, which a causal model never looks back from.

    Attributes:
        ids: (windows, length) int64.
        lengths: (windows,) int64, real tokens of each.
        documents: (windows,) int64, index of the document each comes from.
    """

    ids: Tensor
    lengths: Tensor
    documents: Tensor


def token_batches(
    documents: Sequence[Document],
    tokenizer: Any,
    window: int = 512,
    max_tokens: int = 8192,
    batch_tokens: int = 1024,
) -> list[TokenBatch]:
    """Cut documents into windows, as evenly over documents as `max_tokens` allows.

    Windows get shorter where that lets every document give one.

    Args:
        documents: Each is cut on its own; no window spans two.
        tokenizer: As transformers makes them.
        window: Longest window in tokens.
        max_tokens: Stop adding windows here; every document gives its first before any gives a
            second.
        batch_tokens: Most tokens in a batch, padding included; at least one window.
    Raises:
        InputError: Fewer than two documents have 16 tokens (one, where only one is given).
    """
    share = max(SHORTEST, max_tokens // len(documents))
    window = min(window, share)  # every document is heard: they, not tokens, make it certain
    pieces = [_windows(_encode(tokenizer, document.text), window) for document in documents]
    chosen = list(_round_robin(pieces, max_tokens))
    if sum(map(bool, pieces)) < min(2, len(documents)):
        raise InputError(
            f"the text is too short: fewer than two documents have {SHORTEST} tokens; "
            "pass longer documents"
        )
    chosen.sort(key=lambda item: -item[1].numel())  # similar lengths together: little padding
    batches, batch = [], [chosen[0]]
    for item in chosen[1:]:
        if (len(batch) + 1) * batch[0][1].numel() > batch_tokens:
            batches.append(_stack(batch))
            batch = []
        batch.append(item)
    return [*batches, _stack(batch)]


def encoder_batches(
    documents: Sequence[Document], tokenizer: Any, model: nn.Module
) -> list[dict[str, Tensor]]:
    """The starts of documents as an encoder takes them, padded, with their attention mask.

    One by one where the tokenizer or the model knows no padding.

    Args:
        documents: Each gives a row.
        tokenizer: As transformers makes them.
        model: Its configuration says how many tokens it takes.
    """
    texts = [document.text for document in documents]
    rows = ENCODER_ROWS if _pads(tokenizer, model) else 1
    chunks = [texts[i : i + rows] for i in range(0, len(texts), rows)]
    longest = min(ENCODER_TOKENS, positions(model))
    options = {"padding": rows > 1, "truncation": True, "max_length": longest}
    return [dict(tokenizer(chunk, return_tensors="pt", **options)) for chunk in chunks]


def positions(model: nn.Module, default: int = sys.maxsize) -> int:
    """Tokens that a model has positions for.

    A table of positions that begins behind the padding's, as RoBERTa's, has fewer than rows.
    """
    config = getattr(model, "config", None)
    limit = getattr(config, "max_position_embeddings", None) or default
    tables = (m for name, m in model.named_modules() if name.endswith("position_embeddings"))
    skipped = (table.padding_idx for table in tables if isinstance(table, nn.Embedding))
    return int(limit) - max((index + 1 for index in skipped if index is not None), default=0)


def _pads(tokenizer: Any, model: nn.Module) -> bool:
    """Whether rows of other lengths can stand in one batch; some heads look for the last token."""
    knows = getattr(getattr(model, "config", None), "pad_token_id", None) is not None
    is_last = type(model).__name__.endswith("ForSequenceClassification")
    return tokenizer.pad_token_id is not None and (knows or not is_last)


def count_tokens(batches: Iterable[TokenBatch]) -> int:
    """Real tokens in batches."""
    return sum(int(batch.lengths.sum()) for batch in batches)


def _encode(tokenizer: Any, text: str) -> Tensor:
    # verbose=False: the tokenizer warns of texts beyond the model's length; windows are shorter.
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return torch.tensor(ids, dtype=torch.int64)


def _windows(ids: Tensor, window: int) -> list[Tensor]:
    return [piece for piece in ids.split(window) if piece.numel() >= SHORTEST]


def _round_robin(pieces: list[list[Tensor]], max_tokens: int) -> Iterator[tuple[int, Tensor]]:
    total = 0
    for turn in range(max((len(p) for p in pieces), default=0)):
        for document, windows in enumerate(pieces):
            if turn < len(windows):
                if total and total + windows[turn].numel() > max_tokens:
                    return
                total += windows[turn].numel()
                yield document, windows[turn]


def _stack(items: list[tuple[int, Tensor]]) -> TokenBatch:
    lengths = torch.tensor([ids.numel() for _, ids in items])
    ids = torch.zeros(len(items), int(lengths.max()), dtype=torch.int64)
    for row, (_, piece) in enumerate(items):
        ids[row, : piece.numel()] = piece
    return TokenBatch(ids, lengths, torch.tensor([document for document, _ in items]))
