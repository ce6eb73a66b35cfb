"""Metrics of tensors: a model's outputs beside targets, or beside the original's."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tauten.core.errors import InputError
from tauten.data.tensors import call_model, main_output
from tauten.evaluation.metrics import Mean
from tauten.evaluation.targets import mask_of, targets_of

IGNORED = -100  # a target that doesn't count, as in torch's cross_entropy


class Accuracy(Mean):
    """Share of right answers, averaged by example; batches have targets.

    Answers are the class of the highest output, or, with one output an answer, whether it is
    above 0 (above 0.5 where the original's all lie between 0 and 1). Targets of -100 and of
    padding don't count.
    """

    name = "accuracy"
    meaning = "share of right answers"

    def __init__(self) -> None:
        self._bound = 0.0

    def prepare(self, original: nn.Module, batches: Sequence[Any]) -> None:
        with torch.inference_mode():
            outputs = [main_output(call_model(original, batch)) for batch in batches]
        alike = all(
            o.numel() == targets_of(b).numel() for o, b in zip(outputs, batches, strict=True)
        )
        if alike and all(bool(((o >= 0) & (o <= 1)).all()) for o in outputs):
            self._bound = 0.5

    def score(self, model: nn.Module, batch: Any, index: int) -> Tensor:
        output, targets = main_output(call_model(model, batch)), targets_of(batch)
        if output.numel() == targets.numel():
            answers = (output > self._bound).view(targets.shape)
        elif output.shape[:-1] == targets.shape:
            answers = output.argmax(-1)
        else:  # (rows, classes, ...), as torch's cross_entropy takes it
            answers = output.argmax(1)
        counts, mask = targets != IGNORED, mask_of(batch)
        if mask is not None and mask.shape == targets.shape:
            counts = counts & mask.bool()
        counts = counts.reshape(len(targets), -1)
        right = answers.eq(targets).view(counts.shape) & counts
        return right.sum(1).double() / counts.sum(1).clamp(min=1)


class RSquared(Mean):
    """Share of the targets' variance that outputs explain; batches are (inputs, targets)."""

    name = "r2"
    meaning = "share of the targets' variance explained"

    def __init__(self) -> None:
        self._wanted: list[Tensor] = []
        self._variance = torch.ones(1, dtype=torch.float64)

    def wanted(self, original: nn.Module, batch: Any) -> Tensor:
        """What a batch's outputs are compared with, rows first."""
        return targets_of(batch)

    def prepare(self, original: nn.Module, batches: Sequence[Any]) -> None:
        with torch.inference_mode():
            self._wanted = [_rows(self.wanted(original, batch)) for batch in batches]
        self._variance = torch.cat(self._wanted).var(0)
        if not bool((self._variance > 0).all()):
            raise InputError(f"{self.name}: what is to be explained is the same in all examples")

    def score(self, model: nn.Module, batch: Any, index: int) -> Tensor:
        output, wanted = _rows(main_output(call_model(model, batch))), self._wanted[index]
        return 1 - ((output - wanted).square() / self._variance).mean(1)


class Agreement(RSquared):
    """Share of the variance of the original's outputs that a model's explain; needs no labels."""

    name = "agreement"
    meaning = "share of the variance of the original's outputs"

    def wanted(self, original: nn.Module, batch: Any) -> Tensor:
        return main_output(call_model(original, batch))


class Similarity(Mean):
    """Cosine of each example's output to the original model's; needs no labels."""

    name = "similarity"
    meaning = "cosine to the original's outputs"

    def __init__(self) -> None:
        self._reference: list[Tensor] = []

    def prepare(self, original: nn.Module, batches: Sequence[Any]) -> None:
        with torch.inference_mode():
            self._reference = [features(original, batch) for batch in batches]

    def score(self, model: nn.Module, batch: Any, index: int) -> Tensor:
        return nn.functional.cosine_similarity(features(model, batch), self._reference[index])


def features(model: nn.Module, batch: Any) -> Tensor:
    """(examples, n) output of a model, averaged over real tokens where there is a mask."""
    output = main_output(call_model(model, batch))
    mask = mask_of(batch)
    if mask is not None and output.dim() == 3:
        output = (output * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
    return output.flatten(1).float()


def _rows(tensor: Tensor) -> Tensor:
    """(rows, numbers) float64."""
    return tensor.double().reshape(len(tensor), -1)
