"""What quality means: one score an independent example."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tauten.core.errors import InputError, TautenError
from tauten.core.measurement import Drop
from tauten.core.progress import track
from tauten.data.windows import TokenBatch
from tauten.evaluation.statistics import CONFIDENCE, linear_drop, log_drop

# What a model or a user's metric raises when it is called on something that doesn't suit it.
MODEL_ERRORS = (RuntimeError, ValueError, TypeError, LookupError, ArithmeticError, AttributeError)
PIECE = 2**20  # logits looked at at once: 4 MB, which malloc keeps for the next


@dataclass(frozen=True)
class Scores:
    """Scores of the same examples in the same order, comparable between models.

    Attributes:
        total: (n,) score of each example, summed over what it holds.
        weight: (n,) what it holds: tokens, or 1.
    """

    total: Tensor
    weight: Tensor


class Measure(ABC):
    """A quality of a model, measured by example.

    Attributes:
        meaning: What it measures, in a few words.
    """

    name: str
    meaning = "given by the caller"
    higher_is_better = True

    @property
    def identity(self) -> str:
        """Changes with what the metric computes."""
        return self.name

    @abstractmethod
    def scores(self, model: nn.Module, batches: Sequence[Any]) -> Scores:
        """Score a model on batches."""

    @abstractmethod
    def value(self, scores: Scores) -> float:
        """The figure that people quote."""

    @abstractmethod
    def drop(
        self,
        original: Scores,
        candidate: Scores,
        confidence: float = CONFIDENCE,
        unit: str = "",
    ) -> Drop:
        """Loss between two models on the same batches.

        Args:
            confidence: Of each end of its interval on its own.
            unit: As `Goal.drop_unit`.
        """

    def prepare(self, original: nn.Module, batches: Sequence[Any]) -> None:
        """Look at the original before any candidate; most metrics needn't."""
        return


class Perplexity(Measure):
    """exp of the mean loss of a language model a token; lower is better."""

    name = "perplexity"
    meaning = "exp of the mean loss a token"
    higher_is_better = False

    def scores(self, model: nn.Module, batches: Sequence[TokenBatch]) -> Scores:
        found = [
            self.window_scores(model, batch) for batch in track(batches, "perplexity", len(batches))
        ]
        return self.gathered(batches, found)

    @staticmethod
    def window_scores(model: nn.Module, batch: TokenBatch) -> tuple[Tensor, Tensor]:
        """Summed losses and tokens of each window, (windows,) float64 each."""
        with torch.inference_mode():
            logits = model(input_ids=batch.ids, use_cache=False).logits  # (windows, length, V)
        losses, mask = next_token_losses(logits, batch)
        return (losses * mask).double().sum(1), mask.double().sum(1)

    @staticmethod
    def gathered(batches: Sequence[TokenBatch], found: Sequence[tuple[Tensor, Tensor]]) -> Scores:
        """Scores by document from those of the windows of each batch."""
        losses, tokens = (torch.cat(parts) for parts in zip(*found, strict=True))
        if not losses.isfinite().all():
            raise TautenError("perplexity isn't finite: the model returned NaN or infinity")
        return joined(Scores(losses, tokens), torch.cat([batch.documents for batch in batches]))

    def value(self, scores: Scores) -> float:
        return float((scores.total.sum() / scores.weight.sum()).exp())

    def drop(
        self,
        original: Scores,
        candidate: Scores,
        confidence: float = CONFIDENCE,
        unit: str = "",
    ) -> Drop:
        return log_drop(original.total, candidate.total, original.weight, confidence, unit)


class Mean(Measure):
    """Mean of a score, higher is better: what accuracy, similarity and users' metrics share."""

    @abstractmethod
    def score(self, model: nn.Module, batch: Any, index: int) -> Tensor:
        """(examples,) scores of a batch, or one value for all of it."""

    def scores(self, model: nn.Module, batches: Sequence[Any]) -> Scores:
        parts = []
        for index, batch in enumerate(track(batches, self.name, len(batches))):
            with torch.inference_mode():
                parts.append(self.score(model, batch, index).double().flatten())
        return alike(torch.cat(parts), self.name)

    def value(self, scores: Scores) -> float:
        return float(scores.total.sum() / scores.weight.sum())

    def drop(
        self,
        original: Scores,
        candidate: Scores,
        confidence: float = CONFIDENCE,
        unit: str = "",
    ) -> Drop:
        scores = original.total, candidate.total, original.weight
        return linear_drop(*scores, self.higher_is_better, confidence, unit)


def alike(values: Tensor, name: str) -> Scores:
    """Scores of examples that weigh the same.

    Args:
        values: (n,) float64.
        name: Of the metric.
    Raises:
        TautenError: One is NaN or infinite.
    """
    if not values.isfinite().all():
        raise TautenError(f"the metric {name} returned NaN or infinity")
    return Scores(values, torch.ones_like(values))


def joined(scores: Scores, units: Tensor) -> Scores:
    """Scores of units that hold several examples each, by ascending number of the unit.

    Args:
        scores: Of the examples.
        units: (n,) int64, which unit each example belongs to.
    Raises:
        InputError: There isn't one score for each example.
    """
    if len(units) != len(scores.total):
        raise InputError("a metric of groups or documents must give one number for each example")
    _, index = units.unique(return_inverse=True)
    total = torch.zeros(int(index.max()) + 1, dtype=torch.float64)
    weight = torch.zeros_like(total)
    total.index_add_(0, index, scores.total)
    weight.index_add_(0, index, scores.weight)
    return Scores(total, weight)


def next_token_losses(logits: Tensor, batch: TokenBatch) -> tuple[Tensor, Tensor]:
    """Loss of each token given those before it.

    Args:
        logits: (windows, length, vocabulary).
    Returns:
        (windows, length - 1) float32 losses, and a mask of the same shape: 1 at real tokens.
    """
    targets = nn.functional.pad(batch.ids[:, 1:], (0, 1)).flatten()
    losses = [
        nn.functional.cross_entropy(
            rows.float(), targets[start : start + len(rows)], reduction="none"
        )
        for start, rows in pieces(logits)
    ]
    return torch.cat(losses).view(batch.ids.shape)[:, :-1], token_mask(batch)


def pieces(logits: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Rows of logits (windows, length, vocabulary), a few at a time, and the number of the first.

    The system would have to hand out and clear as much memory again for all of them at once.
    """
    rows = logits.flatten(0, 1)
    step = max(1, PIECE // rows.shape[1])
    yield from ((start, rows[start : start + step]) for start in range(0, len(rows), step))


def token_mask(batch: TokenBatch) -> Tensor:
    """(windows, length - 1) float, 1 where the next token is real."""
    position = torch.arange(1, batch.ids.shape[1])
    return (position < batch.lengths[:, None]).float()
