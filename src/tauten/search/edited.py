"""A model whose shape was changed is run once before anyone gets it."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from transformers import PreTrainedModel

from tauten.core.errors import NotApplicableError, first_line
from tauten.models.batch import MISFITS, CalibrationBatch, first_tokens
from tauten.models.state import state_kept


def runnable_calls(model: nn.Module, batches: Sequence[CalibrationBatch]) -> list[CalibrationBatch]:
    """Small calls that a model answers: some of the data, and a token where it reads tokens.

    Args:
        model: Before it is edited; isn't changed.
        batches: Calls of it; may be empty.
    """
    calls = [first_tokens(batch) for batch in batches[:1]] + _token(model)
    return [call for call in calls if not _obstacle(model, call)]


def check_runs(technique: str, model: nn.Module, calls: Sequence[CalibrationBatch]) -> None:
    """Run an edited model.

    Args:
        technique: Whose name stands in the message.
        model: Edited; isn't changed.
        calls: That it answered before.
    Raises:
        NotApplicableError: It can't be called, or its outputs aren't numbers.
    """
    for call in calls:
        if why := _obstacle(model, call):
            raise NotApplicableError(
                f"{technique} doesn't fit {type(model).__name__}: the model that it makes {why}; "
                "choose another technique"
            )


def _obstacle(model: nn.Module, call: CalibrationBatch) -> str:
    """Why a model doesn't answer a call; empty if it does."""
    try:
        with torch.no_grad(), state_kept(model):
            outputs = tree_leaves(call.call(model))
    except MISFITS as error:
        return f"can't be called ({first_line(error)})"
    floating = [x for x in outputs if isinstance(x, Tensor) and x.is_floating_point()]
    return "gives NaN" if any(bool(x.isnan().any()) for x in floating) else ""


def _token(model: nn.Module) -> list[CalibrationBatch]:
    """A call with one token, for models of transformers that take tokens; it makes a cache."""
    if not isinstance(model, PreTrainedModel) or model.main_input_name != "input_ids":
        return []
    inputs: dict[str, Any] = {"input_ids": torch.ones(1, 1, dtype=torch.long)}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = inputs["input_ids"]
    return [CalibrationBatch((), inputs)]
