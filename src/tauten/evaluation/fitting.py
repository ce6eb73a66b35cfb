"""Which metrics serve a model and its data, by what it returns and what its targets are."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import Tensor, nn

from tauten.core.errors import InputError
from tauten.data.tensors import main_output
from tauten.evaluation.detection import BoxF1, is_boxes
from tauten.evaluation.metrics import Mean, Measure
from tauten.evaluation.own_loss import OwnLoss, own_loss
from tauten.evaluation.ranking import RankCorrelation
from tauten.evaluation.targets import LABELS, has_targets, targets_of
from tauten.evaluation.tensor_metrics import Accuracy, Agreement, RSquared, Similarity
from tauten.evaluation.transcripts import SPEECH, WordErrors

OWN = "pass metric=tauten.Metric(function), a function (model, batch) -> one number an example"
Kind = Callable[[], Measure]


def fitting(batch: Any, returned: Any, is_named: bool = False) -> dict[str, Kind]:
    """Metrics that serve a model on this kind of batch by their names, the best one first.

    Args:
        batch: Inputs, (inputs, targets), or a dict with labels.
        returned: By the model for it.
        is_named: One of them is asked for by its name.
    Raises:
        InputError: There are targets that no metric compares outputs with, and none is named.
    """
    kinds = _kinds(batch, returned)
    if not kinds and is_named:
        kinds = _without_targets(main_output(returned))
    if not kinds:
        raise InputError(_misfit(batch, main_output(returned)))
    return {kind.name: kind for kind in kinds}


def of_speech(model: nn.Module, batch: Any, tokenizer: Callable[[], Any] | None) -> Kind | None:
    """The word error rate, if a batch is speech and what was said, for a model that generates.

    Raises:
        InputError: It is, but there is no tokenizer.
    """
    is_speech = isinstance(batch, Mapping) and LABELS in batch and any(k in batch for k in SPEECH)
    if not is_speech or not hasattr(model, "generate") or targets_of(batch).dim() != 2:
        return None
    if tokenizer is None:
        raise InputError(
            "the word error rate of speech needs the tokenizer of its labels: pass the model's "
            f"folder, or {OWN}"
        )
    return partial(WordErrors, tokenizer)


def _kinds(batch: Any, returned: Any) -> list[type[Mean]]:
    if is_boxes(returned):
        return [BoxF1]
    if own_loss(returned) is not None and (isinstance(returned, Mapping) or has_targets(batch)):
        first = getattr(returned, "logits", None)
        is_alone = first is None or targets_of(batch).dim() > 1
        if is_alone:  # labels of tokens may be those of the next, which the model itself knows
            return [OwnLoss]
    output = main_output(returned)
    others = _without_targets(output)
    if not has_targets(batch):
        return others
    targets = targets_of(batch)
    whole = not targets.is_floating_point()
    is_class = whole and (
        output.shape[:-1] == targets.shape
        or (output.dim() > 1 and (output.shape[0], *output.shape[2:]) == tuple(targets.shape))
    )
    same = output.numel() == targets.numel()
    if is_class or (same and bool(((targets == 0) | (targets == 1)).all())):
        return [Accuracy, *others]
    if same and whole and targets.dim() == 2 and targets.shape[1] > 1:  # grades of candidates
        return [RankCorrelation, RSquared, *others]
    return [RSquared, *others] if same else []


def _without_targets(output: Tensor) -> list[type[Mean]]:
    size = output[0].numel() if output.dim() else 1
    return [Similarity] if size > 1 else [Agreement]


def _misfit(batch: Any, output: Tensor) -> str:
    targets = targets_of(batch)
    return (
        f"no metric compares outputs of shape {tuple(output.shape)} with targets of shape "
        f"{tuple(targets.shape)} ({targets.dtype}): {OWN}"
    )
