"""The least that a language model must do: know which tokens are frequent."""

from collections.abc import Sequence

import torch
from torch import Tensor

from tauten.core.printing import logger
from tauten.data.windows import TokenBatch

_log = logger(__name__)


def unigram_perplexity(known: Sequence[TokenBatch], judged: Sequence[TokenBatch]) -> float:
    """Perplexity of a model that knows each token's frequency, and nothing of those before it.

    Frequencies are counts and 1 (Laplace's rule), so that no token is impossible.

    Args:
        known: That the frequencies are taken from.
        judged: That it is judged on: all tokens but the first of each window.
    """
    seen, asked = _tokens(known, 0), _tokens(judged, 1)
    size = 1 + int(max(seen.max(), asked.max()))
    counts = torch.bincount(seen, minlength=size).double() + 1
    return float((-(counts[asked] / counts.sum()).log().mean()).exp())


def say_if_no_better(
    perplexity: float, known: Sequence[TokenBatch], judged: Sequence[TokenBatch]
) -> None:
    """Say that a model's perplexity tells that something is wrong with it, or with how it is
    measured; arguments as above."""
    words = unigram_perplexity(known, judged)
    if perplexity > words:
        _log.warning(
            "the original's perplexity is %.1f, and token frequencies alone give %.1f: it is "
            "measured wrongly (another tokenizer, a start token that is missing, another "
            "language) or broken; what follows is about noise",
            *(perplexity, words),
        )


def _tokens(batches: Sequence[TokenBatch], first: int) -> Tensor:
    """Real tokens of windows from a position on, (tokens,)."""
    found = []
    for batch in batches:
        position = torch.arange(batch.ids.shape[1])
        found.append(batch.ids[(position >= first) & (position < batch.lengths[:, None])])
    return torch.cat(found)
