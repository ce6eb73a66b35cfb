"""How many words of what was said a speech model gets wrong."""

import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.whisper.english_normalizer import BasicTextNormalizer

from tauten.core.errors import InputError
from tauten.evaluation.metrics import Mean, Scores
from tauten.evaluation.targets import LABELS, targets_of

PROMPT = 8  # tokens before the first word, at most
SPEECH = ("input_features", "input_values")  # what transformers' speech models are called with


class WordErrors(Mean):
    """Word error rate of what `generate` makes of speech, without case and punctuation.

    The rate is errors over words, both summed over examples; labels are the tokens of what was
    said, padded with -100.

    Args:
        tokenizer: Loads what labels were made by.
    """

    name = "word_error_rate"
    meaning = "wrong, missing and added words over words said"
    higher_is_better = False

    def __init__(self, tokenizer: Callable[[], Any]) -> None:
        try:
            import jiwer
        except ImportError:
            raise InputError(
                "word error rates are counted by jiwer: pip install 'tauten[speech]', or pass "
                "metric=tauten.Metric(function, higher_is_better=False)"
            ) from None
        self._count, self._tokenizer = jiwer.process_words, tokenizer

    def score(self, model: nn.Module, batch: Any, index: int) -> Tensor:
        """(rows, 2) wrong words, and words said, of each example."""
        tokenizer, normal = self._tokenizer(), BasicTextNormalizer()
        labels, inputs = targets_of(batch), {k: v for k, v in batch.items() if k != LABELS}
        most = getattr(model.config, "max_target_positions", None) or sys.maxsize
        longest = min(2 * labels.shape[1], most - PROMPT)  # ruined models needn't go on for ever
        ids = model.generate(**inputs, max_new_tokens=longest, do_sample=False)  # type: ignore[operator]
        said, heard = (
            [normal(tokenizer.decode(row[row >= 0], skip_special_tokens=True)).strip() for row in x]
            for x in (labels, ids)  # labels are padded with -100
        )
        if not all(said):
            raise InputError(f"{self.name}: an example's labels hold no words")
        counts = [self._count(*pair) for pair in zip(said, heard, strict=True)]
        wrong = [c.substitutions + c.deletions + c.insertions for c in counts]
        return torch.tensor(list(zip(wrong, [len(s.split()) for s in said], strict=True)))

    def scores(self, model: nn.Module, batches: Sequence[Any]) -> Scores:
        with torch.inference_mode():
            found = [self.score(model, batch, i) for i, batch in enumerate(batches)]
        counts = torch.cat(found).double()
        return Scores(counts[:, 0], counts[:, 1])
