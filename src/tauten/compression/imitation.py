"""A student's loss against its teacher: both run on a batch, outputs and blocks are compared."""

import functools
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from tauten.compression.comparison import EMBEDDING, HIDDEN, Comparison, Outputs, in_dtype
from tauten.core.errors import InputError
from tauten.models.calibration import CalibrationBatch, fast_dtype
from tauten.models.matching import matching_blocks
from tauten.models.targets import Targets
from tauten.solvers.distillation import relative_error, top_divergence

SKEW = 0.1  # of DistiLLM


class Imitation:
    """How far a student is from its teacher on a batch.

    Args:
        student: As it will be called; it may be trained between calls, its shape stays.
        teacher: Isn't changed.
        parts: Of the loss, added up: `kl` or `skew`, of predictions; `hidden`, the squared
            errors of matching blocks' outputs and of an output that isn't logits, each relative
            to the variance of the teacher's; their mean; `embedding`, the same of the output's
            mean over a row's tokens.
        folder: Where the teacher's answers are kept.
        dtype: What the products of both are computed in.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        parts: Sequence[str],
        folder: Path,
        dtype: torch.dtype | None = None,
    ):
        self._comparison = Comparison(tuple(parts), dtype or fast_dtype())
        pairs = compared_blocks(student, teacher, parts)
        self._student, self._blocks = student, [ours for ours, _ in pairs]
        self._teacher = in_dtype(teacher, self._comparison.dtype)
        self._teacher_blocks = [theirs for _, theirs in pairs]
        self._targets = Targets(folder)

    def loss(self, index: int | None, batch: CalibrationBatch) -> Tensor:
        """A scalar with gradients.

        Args:
            index: Of the batch; what the teacher says to it is kept under that.
            batch: Padding that its mask marks doesn't count.
        Raises:
            InputError: Student and teacher give different shapes, or nothing to compare.
        """
        compare = self._comparison
        ask = functools.partial(compare.answer, self._teacher, self._teacher_blocks, batch)
        wanted = self._targets.get(index, ask)
        with torch.enable_grad():
            states, logits = compare.outputs(self._student, self._blocks, batch)
            losses = [] if logits is None else [self._prediction_loss(logits, wanted)]
            embedding = states.pop(EMBEDDING, None)
            if states:
                losses.append(torch.stack([_error(states, wanted, key) for key in states]).mean())
            if embedding is not None:
                losses.append(_error({EMBEDDING: embedding}, wanted, EMBEDDING))
            return torch.stack(losses).sum()

    def _prediction_loss(self, logits: Tensor, wanted: Outputs) -> Tensor:
        rows, classes = len(wanted["indices"]), int(wanted["classes"])
        if logits.shape != (rows, classes):
            raise InputError(
                f"the student predicts {logits.shape[1]} classes at {len(logits)} places, its "
                f"teacher {classes} at {rows}; they need the same vocabulary and output"
            )
        skew = SKEW if "skew" in self._comparison.parts else 0.0
        return top_divergence(logits, wanted["indices"].long(), wanted["log_probabilities"], skew)


def compared_blocks(
    student: nn.Module, teacher: nn.Module, parts: Sequence[str]
) -> list[tuple[str, str]]:
    """Blocks of the student, and of the teacher, whose outputs a loss of these parts compares."""
    return matching_blocks(student, teacher) if HIDDEN in parts else []


def _error(states: Outputs, wanted: Outputs, key: str) -> Tensor:
    """Relative error of the student's states at one place."""
    if states[key].shape != wanted[key].shape:
        what = "embeddings" if key == EMBEDDING else "hidden states"
        ours, theirs = tuple(states[key].shape[1:]), tuple(wanted[key].shape[1:])
        raise InputError(
            f"{what} of the student are of shape {ours}, its teacher's of {theirs}; they can be "
            "compared only where they are equal: pass loss='kl' if the models predict classes"
        )
    return relative_error(states[key], wanted[key])
