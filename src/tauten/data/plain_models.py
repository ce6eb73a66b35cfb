"""Texts for models of one's own that take token ids by position, such as nanoGPT's."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tauten.core.errors import InputError
from tauten.data.calls import parameters_of
from tauten.data.documents import Document
from tauten.data.windows import SHORTEST

_LIMITS = ("block_size", "max_seq_len", "max_position_embeddings", "n_positions", "context_length")
_TOKENS = 128  # where the model doesn't say how many it takes
_LONGEST = 512


def is_plain(model: nn.Module) -> bool:
    """Whether a model's token ids aren't a keyword `input_ids`, as transformers' are."""
    takes = parameters_of(model)
    return "input_ids" not in takes.named and bool(takes.positional) and not takes.more


def plain_batches(
    documents: Sequence[Document], tokenizer: Any, model: nn.Module
) -> list[Tensor | tuple[Tensor, Tensor]]:
    """The starts of documents, those of a length together: such models know no padding.

    Args:
        documents: Each gives a row.
        tokenizer: As transformers makes them, or `PlainTokenizer`.
        model: Says how many tokens it takes, and whether it takes `targets`, the next tokens.
    Returns:
        (rows, tokens) ids, or pairs of them and of the next ones.
    Raises:
        InputError: No document is long enough.
    """
    longest = min(_LONGEST, _positions(model))
    rows: dict[int, list[Tensor]] = {}
    for document in documents:
        ids = torch.tensor(tokenizer(document.text)["input_ids"][: longest + 1], dtype=torch.int64)
        if len(ids) > min(SHORTEST, longest):
            rows.setdefault(len(ids), []).append(ids)
    if not rows:
        raise InputError(f"the text is too short: no document has {SHORTEST} tokens")
    batches = [torch.stack(rows[length]) for length in sorted(rows, reverse=True)]
    if "targets" in parameters_of(model).positional:
        return [(batch[:, :-1], batch[:, 1:]) for batch in batches]
    return [batch[:, :longest] for batch in batches]


def _positions(model: nn.Module) -> int:
    for place in (getattr(model, "config", None), model):
        found = [getattr(place, name, None) for name in _LIMITS]
        limits = [limit for limit in found if isinstance(limit, int)]
        if limits:
            return limits[0]
    return _TOKENS
