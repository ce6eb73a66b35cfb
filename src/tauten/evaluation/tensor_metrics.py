"""Metrics of tensors, chosen by what a model returns and what its targets are."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tauten.core.errors import InputError
from tauten.data.tensors import call_model, main_output
from tauten.evaluation.metrics import Mean

IGNORED = -100  # a target that doesn't count, as in torch's cross_entropy


class Accuracy(Mean):
    """Share of right answers, averaged by example; batches are (inputs, targets).

    Answers are the class of the highest output, or, with one output an answer, whether it is
    above 0 (above 0.5 where all lie between 0 and 1). Targets of -100 don't count.
    """

    name = "accuracy"

    def score(self, model: nn.Module, batch: Any, index: int) -> Tensor:
        output, targets = main_output(call_model(model, batch)), targets_of(batch)
        if output.numel() == targets.numel():
            bound = 0.5 if bool(((output >= 0) & (output <= 1)).all()) else 0.0
            answers = (output > bound).view(targets.shape)
        elif output.shape[:-1] == targets.shape:
            answers = output.argmax(-1)
        else:  # (rows, classes, ...), as torch's cross_entropy takes it
            answers = output.argmax(1)
        counts = (
            (targets != IGNORED).flatten(1) if targets.dim() > 1 else targets[:, None] != IGNORED
        )
        right = answers.eq(targets).view(counts.shape) & counts
        return right.sum(1).double() / counts.sum(1).clamp(min=1)


class RSquared(Mean):
    """Share of the targets' variance that outputs explain; batches are (inputs, targets)."""

    name = "r2"

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

    def wanted(self, original: nn.Module, batch: Any) -> Tensor:
        return main_output(call_model(original, batch))


class Similarity(Mean):
    """Cosine of each example's output to the original model's; needs no labels."""

    name = "similarity"

    def __init__(self) -> None:
        self._reference: list[Tensor] = []

    def prepare(self, original: nn.Module, batches: Sequence[Any]) -> None:
        with torch.inference_mode():
            self._reference = [features(original, batch) for batch in batches]

    def score(self, model: nn.Module, batch: Any, index: int) -> Tensor:
        return nn.functional.cosine_similarity(features(model, batch), self._reference[index])


def fitting(batch: Any, output: Tensor, is_named: bool = False) -> list[type[Mean]]:
    """Metrics that serve a model on this kind of batch, the best one first.

    Args:
        batch: Inputs, or (inputs, targets).
        output: Of the model, for it.
        is_named: One of them is asked for by its name.
    Raises:
        InputError: There are targets that no metric compares outputs with, and none is named.
    """
    others: list[type[Mean]] = [Similarity] if _row_size(output) > 1 else [Agreement]
    if not has_targets(batch):
        return others
    targets = targets_of(batch)
    is_class = not targets.is_floating_point() and (
        output.shape[:-1] == targets.shape
        or (output.dim() > 1 and (output.shape[0], *output.shape[2:]) == tuple(targets.shape))
    )
    same = output.numel() == targets.numel()
    if is_class or (same and bool(((targets == 0) | (targets == 1)).all())):
        return [Accuracy, *others]
    if same:
        return [RSquared, *others]
    if is_named:
        return others
    raise InputError(
        f"no metric compares outputs of shape {tuple(output.shape)} with targets of shape "
        f"{tuple(targets.shape)} ({targets.dtype}): pass metric=tauten.Metric(function), a "
        "function (model, batch) -> one number an example"
    )


def has_targets(batch: Any) -> bool:
    """Whether a batch is (inputs, targets), one tensor of targets."""
    return isinstance(batch, tuple | list) and len(batch) == 2 and isinstance(batch[1], Tensor)


def targets_of(batch: Any) -> Tensor:
    """Targets of a batch that has them."""
    found: Tensor = batch[1]
    return found


def features(model: nn.Module, batch: Any) -> Tensor:
    """(examples, n) output of a model, averaged over real tokens where there is a mask."""
    output = main_output(call_model(model, batch))
    mask = batch.get("attention_mask") if isinstance(batch, dict) else None
    if mask is not None and output.dim() == 3:
        output = (output * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
    return output.flatten(1).float()


def _rows(tensor: Tensor) -> Tensor:
    """(rows, numbers) float64."""
    return tensor.double().reshape(len(tensor), -1)


def _row_size(output: Tensor) -> int:
    return output[0].numel() if output.dim() else 1
