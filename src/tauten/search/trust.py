"""Whether a metric can tell a good model from a bad one: tried before a search goes by it."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from tauten.core.errors import InputError, TautenError
from tauten.core.figures import format_loss
from tauten.core.measurement import Drop
from tauten.core.printing import logger
from tauten.evaluation.metrics import MODEL_ERRORS, Measure, Scores
from tauten.evaluation.targets import LABELS, has_targets, targets_of
from tauten.models.packing import matrix_of, packed_layer, replace_modules
from tauten.models.structure import packable_modules
from tauten.quantization.rtn import RTN

HARDLY, WHOLLY = 0.1, 1.0  # shares of the weights of a matrix that change places
TRUST = 0.99  # confidence with which a metric must tell good from bad: few that can't do by luck
_log = logger(__name__)


def check_metric(
    metric: Measure,
    original: Scores,
    open_model: Callable[[], nn.Module],
    batches: Sequence[Any],
    unit: str = "",
) -> float:
    """Score two ruined copies of a model beside it, packed as what a search measures.

    Args:
        metric: Prepared on the original.
        original: What the model itself scored.
        open_model: Opens a copy whose parameters may be replaced.
        batches: That it was scored on.
        unit: Of drops, as `Goal.drop_unit`.
    Returns:
        What a wholly ruined copy loses; infinite where it can't be scored.
    Raises:
        InputError: The metric doesn't find a ruined model worse than the model itself.
    """
    lost = math.inf
    if not unit and not metric.value(original):
        _log.warning(
            "the original's %s is 0, of which no share can be lost: nothing can be certified by "
            "it. If higher is better the targets may not fit; else allow max_drop='0.5 points'",
            metric.name,
        )
        return lost
    for share in (WHOLLY, HARDLY):
        model = open_model()
        ruin(model, share)
        try:
            scores = metric.scores(model, batches)
        except TautenError:  # not a number, or the function raised: it tells them apart
            continue
        drop = metric.drop(original, scores, TRUST, unit)
        why = _complaint(drop, share)
        if why:
            if len(original.total) == len(batches):
                why += f"; it gives one number a batch, of {len(batches)}: return one an example"
            raise InputError(f"the metric {metric.name} can't be trusted here: {why}")
        lost = drop.value if share == WHOLLY else lost
    return lost


def check_chance(
    metric: Measure, original: Scores, model: nn.Module, batches: Sequence[Any], unit: str = ""
) -> None:
    """Score the original beside itself on examples that have the targets of others.

    A model that has learnt only how often each answer comes scores alike on both.

    Args:
        metric: A new one, that may be prepared on other batches.
        original: What the model scored.
        model: The original.
        batches: That it was scored on; without targets there is nothing to try.
        unit: Of drops, as `Goal.drop_unit`.
    Raises:
        InputError: It is no better with its own targets.
    """
    generator = torch.Generator().manual_seed(0)
    if not all(map(has_targets, batches)) or not (unit or metric.value(original)):
        return
    mixed = [_mixed(batch, generator) for batch in batches]
    try:
        metric.prepare(model, mixed)
        scores = metric.scores(model, mixed)
    except (TautenError, *MODEL_ERRORS):  # targets that say more than what is right
        return
    if scores.total.shape != original.total.shape or torch.equal(scores.total, original.total):
        return  # it doesn't look at targets
    drop = metric.drop(original, scores, TRUST, unit)
    if drop.low <= 0:
        raise InputError(
            f"the metric {metric.name} can't be trusted here: where each example has the targets "
            f"of another the original scores no worse ({told_ends(drop)}, by {drop.examples} "
            "examples), so that it is no better than chance, or there are too few examples"
        )


def _mixed(batch: Any, generator: torch.Generator) -> Any:
    targets = targets_of(batch)
    targets = targets[torch.randperm(len(targets), generator=generator)]
    return {**batch, LABELS: targets} if isinstance(batch, Mapping) else (batch[0], targets)


def told_ends(drop: Drop) -> str:
    """Between what a loss lies, in words."""
    low, high = (format_loss(end, drop.unit) for end in (drop.low, drop.high))
    return f"its loss is between {low} and {high}"


def ruin(model: nn.Module, share: float) -> None:
    """Let a share of each matrix's weights change places, always the same ones; pack at 8 bits.

    The parameters are replaced, their values aren't written to.
    """
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            values = parameter.detach().flatten().clone()
            moved = torch.randperm(values.numel(), generator=generator)
            moved = moved[: max(2, round(share * values.numel()))]
            values[moved] = values[moved.roll(1)]
            parameter.data = values.view_as(parameter)
    layers, technique = dict[nn.Module, nn.Module](), RTN(8)
    for name, module in packable_modules(model):
        matrix = matrix_of(module, model.get_parameter(f"{name}.weight").detach()).float()
        layers[module] = packed_layer(module, technique.encode(matrix), "float")
    replace_modules(model, layers)


def _complaint(drop: Drop, share: float) -> str:
    """What is wrong with a metric that finds a ruined model to have lost so much; perhaps empty."""
    some = "all weights" if share == WHOLLY else f"{share:.0%} of the weights"
    if drop.high < 0:
        return (
            f"a model of which {some} changed places scores better than the original. If lower is "
            "better, pass tauten.Metric(function, higher_is_better=False); else the targets don't "
            "fit the model's outputs"
        )
    if share == WHOLLY and drop.low <= 0:
        return (
            f"a model of which {some} changed places scores no worse than the original "
            f"({told_ends(drop)}, by {drop.examples} examples). Either "
            "it doesn't look at the model, or the original is no better than chance, or there are "
            "too few examples"
        )
    return ""
