"""KL divergence to the original: how far a language model's predictions moved, without labels."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tauten.data.windows import TokenBatch
from tauten.evaluation.metrics import pieces, token_mask


class Divergence:
    """Mean KL(original || candidate) a token, exact over the vocabulary.

    The original's log-probabilities are kept, so a few batches are all it takes.

    Args:
        original: The original model.
        batches: Token batches.
    """

    def __init__(self, original: nn.Module, batches: Sequence[TokenBatch]):
        self._batches = batches
        self._reference = [_log_probabilities(original, batch) for batch in batches]

    def of(self, candidate: nn.Module) -> Tensor:
        """(tokens,) KL of each token in nats."""
        parts = []
        for batch, reference in zip(self._batches, self._reference, strict=True):
            moved = []
            for start, rows in pieces(_logits(candidate, batch)):
                known = reference[start : start + len(rows)]
                moved.append((known.exp() * (known - rows.float().log_softmax(-1))).sum(-1))
            divergence = torch.cat(moved).view(batch.ids.shape)[:, :-1]
            parts.append(divergence[token_mask(batch).bool()])
        return torch.cat(parts)


def batches_within(
    batches: Sequence[TokenBatch], vocabulary: int, max_bytes: int = 2**28
) -> list[TokenBatch]:
    """The first batches whose log-probabilities fit into memory, at least one."""
    kept: list[TokenBatch] = []
    used = 0
    for batch in batches:
        used += batch.ids.numel() * vocabulary * 4
        if kept and used > max_bytes:
            break
        kept.append(batch)
    return kept


def _log_probabilities(model: nn.Module, batch: TokenBatch) -> Tensor:
    """(windows * length, vocabulary)."""
    return _logits(model, batch).flatten(0, 1).float().log_softmax(-1)


def _logits(model: nn.Module, batch: TokenBatch) -> Tensor:
    with torch.inference_mode():
        logits: Tensor = model(input_ids=batch.ids, use_cache=False).logits
        return logits
