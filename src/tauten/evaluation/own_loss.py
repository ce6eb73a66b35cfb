"""The loss that a model computes itself."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tauten.core.errors import InputError
from tauten.core.rows import cut_rows
from tauten.data.tensors import call_model, rows_of
from tauten.evaluation.metrics import Mean


class OwnLoss(Mean):
    """Loss that a model returns, of each example by itself; where it returns several, their sum."""

    name = "loss"
    meaning = "the model's own, by example"
    higher_is_better = False

    def score(self, model: nn.Module, batch: Any, index: int) -> Tensor:
        rows = rows_of(batch)
        parts = cut_rows(batch, [1] * rows) if rows > 1 else [batch]
        found = [own_loss(call_model(model, part)) for part in parts]
        if any(loss is None for loss in found):
            raise InputError("the model returned a loss once, but not of each example")
        return torch.stack([loss.double() for loss in found if loss is not None])


def own_loss(output: Any) -> Tensor | None:
    """The loss in an output: its `loss`, or the sum of a dict of nothing but numbers; else None."""
    if isinstance(output, Mapping):
        values = [*output.values()]
        loss = output.get("loss")
    else:
        values, loss = [], getattr(output, "loss", None)
    if isinstance(loss, Tensor) and loss.numel() == 1:
        return loss.reshape(())
    numbers = [v.reshape(()) for v in values if isinstance(v, Tensor) and v.numel() == 1]
    return torch.stack(numbers).sum() if numbers and len(numbers) == len(values) else None
