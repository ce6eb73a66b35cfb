"""Token windows of documents, batched for a language model."""

import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tauten.core.errors import InputError
from tauten.core.figures import plural
from tauten.core.printing import logger
from tauten.data.documents import Document

_log = logger(__name__)
ENCODER_TOKENS = 256  # an encoder's text is cut here
ENCODER_ROWS = 16
SHORTEST = 16  # tokens; a shorter piece says little and costs a forward pass
JUDGED = 256  # tokens of a window at least, where documents have so many: a model is to use them
FEWEST = 4  # documents that are heard, whatever the budget


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

    What the tokenizer puts before a text, such as a token that says it begins, stands at the head
    of each window. Documents are tokenized as they are needed.

    Args:
        documents: Each is cut on its own; no window spans two.
        tokenizer: As transformers makes them.
        window: Longest window in tokens; less where else fewer than `FEWEST` documents were used.
        max_tokens: Stop adding windows here; every document gives its first before any gives a
            second.
        batch_tokens: Most tokens in a batch, padding included; at least one window.
    Raises:
        InputError: Fewer than two documents have 16 tokens (one, where only one is given).
    """
    head = _head(tokenizer)
    window = min(window, max(SHORTEST, max_tokens // min(len(documents), FEWEST)))
    seen: list[list[Tensor]] = []

    def pieces() -> Iterator[list[Tensor]]:
        for document in documents:
            seen.append(_windows(_encode(tokenizer, document.text), head, window))
            yield seen[-1]

    chosen = list(_in_turns(pieces(), max_tokens))
    short = sum(1 for found in seen if not found)
    if len(seen) == len(documents) and len(seen) - short < min(2, len(documents)):
        raise InputError(
            f"the text is too short: fewer than two documents have {SHORTEST} tokens; "
            "pass longer documents"
        )
    if short:
        _log.info("%s shorter than %d tokens left out", plural(short, "document"), SHORTEST)
    chosen.sort(key=lambda item: -item[1].numel())  # similar lengths together: little padding
    batches, batch = [], [chosen[0]]
    for item in chosen[1:]:
        if (len(batch) + 1) * batch[0][1].numel() > batch_tokens:
            batches.append(_stack(batch))
            batch = []
        batch.append(item)
    return [*batches, _stack(batch)]


def judged_window(documents: int, max_tokens: int, longest: int) -> int:
    """Tokens of a window to be judged by: every document is heard, they make a bound tight, unless
    windows got shorter than `JUDGED`."""
    return min(longest, max(JUDGED, max_tokens // documents))


def used(batches: Sequence[TokenBatch], given: int) -> str:
    """Says what batches hold of so many documents."""
    lengths = torch.cat([batch.lengths for batch in batches])
    heard = len(torch.cat([batch.documents for batch in batches]).unique())
    windows = f"{plural(len(lengths), 'window')} of up to {int(lengths.max()):,} tokens"
    return f"{windows} from {heard:,} of {plural(given, 'document')}, {int(lengths.sum()):,} tokens"


def encoder_batches(
    documents: Sequence[Document],
    tokenizer: Any,
    model: nn.Module,
    max_tokens: int = sys.maxsize,
) -> list[dict[str, Tensor]]:
    """The starts of documents as an encoder takes them, padded, with their attention mask.

    To the decoder behind an encoder, as T5's, the same text is what stands before the next token.

    One by one where the tokenizer or the model knows no padding.

    Args:
        documents: Each gives a row.
        tokenizer: As transformers makes them.
        model: Its configuration says how many tokens it takes.
        max_tokens: Stop adding rows here.
    Raises:
        InputError: The model takes something else than text.
    """
    takes = getattr(model, "main_input_name", "input_ids")
    if takes != "input_ids":
        raise InputError(
            f"{type(model).__name__} takes {takes}, not text: pass batches of what it is called "
            "with, such as dicts of its keywords"
        )
    texts = [document.text for document in documents]
    rows = ENCODER_ROWS if _pads(tokenizer, model) else 1
    longest, tokens = min(ENCODER_TOKENS, positions(model)), 0
    options = {"padding": rows > 1, "truncation": True, "max_length": longest}
    batches: list[dict[str, Tensor]] = []
    for start in range(0, len(texts), rows):
        chunk = texts[start : start + rows]
        batch = dict(tokenizer(chunk, return_tensors="pt", **options))
        tokens += batch["input_ids"].numel()
        if batches and tokens > max_tokens:
            break
        batches.append(_with_decoder(batch, model))
    return batches


def _with_decoder(batch: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    if not is_encoder_decoder(model):
        return batch
    decoder = {"decoder_input_ids": batch["input_ids"]}
    if "attention_mask" in batch:
        decoder["decoder_attention_mask"] = batch["attention_mask"]
    return batch | decoder


def is_encoder_decoder(model: nn.Module) -> bool:
    """Whether a model has a decoder behind an encoder, by its configuration."""
    return bool(getattr(getattr(model, "config", None), "is_encoder_decoder", False))


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


def _head(tokenizer: Any) -> Tensor:
    """What a tokenizer puts before a text by itself, (tokens,)."""
    whole, bare = (tokenizer("a", **o)["input_ids"] for o in ({}, {"add_special_tokens": False}))
    starts = [i for i in range(len(whole)) if bare and whole[i : i + len(bare)] == bare]
    return torch.tensor(whole[: starts[0]] if starts else [], dtype=torch.int64)


def _windows(ids: Tensor, head: Tensor, window: int) -> list[Tensor]:
    if torch.equal(ids[: head.numel()], head):  # the template of a chat begins it too
        ids = ids[head.numel() :]
    pieces = ids.split(max(SHORTEST, window - head.numel()))
    return [torch.cat([head, piece]) for piece in pieces if piece.numel() >= SHORTEST]


def _in_turns(documents: Iterable[list[Tensor]], max_tokens: int) -> Iterator[tuple[int, Tensor]]:
    """Windows with the index of their document: all first ones, all second ones, ..."""
    total, waiting = 0, list[tuple[int, list[Tensor]]]()
    turn: Iterable[tuple[int, list[Tensor]]] = enumerate(documents)
    while True:
        for document, windows in turn:
            if windows:
                if total and total + windows[0].numel() > max_tokens:
                    return
                total += windows[0].numel()
                waiting.append((document, windows[1:]))
                yield document, windows[0]
        if not any(windows for _, windows in waiting):
            return
        turn, waiting = waiting, []


def _stack(items: list[tuple[int, Tensor]]) -> TokenBatch:
    lengths = torch.tensor([ids.numel() for _, ids in items])
    ids = torch.zeros(len(items), int(lengths.max()), dtype=torch.int64)
    for row, (_, piece) in enumerate(items):
        ids[row, : piece.numel()] = piece
    return TokenBatch(ids, lengths, torch.tensor([document for document, _ in items]))
