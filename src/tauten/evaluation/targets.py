"""What of a batch says what is right, and which examples of it belong together."""

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tauten.core.errors import InputError
from tauten.data.tensors import inputs_of, rows_of

LABELS = "labels"  # as transformers' models and collators name them


def has_targets(batch: Any) -> bool:
    """Whether a batch is (inputs, targets), perhaps with weights, or a dict with labels."""
    if isinstance(batch, Mapping):
        return isinstance(batch.get(LABELS), Tensor)
    return isinstance(batch, tuple | list) and len(batch) in (2, 3) and isinstance(batch[1], Tensor)


def targets_of(batch: Any) -> Tensor:
    """Targets of a batch that has them."""
    found: Tensor = batch[LABELS] if isinstance(batch, Mapping) else batch[1]
    return found


def mask_of(batch: Any) -> Tensor | None:
    """(rows, length), 1 where a token is real; None where the batch doesn't say it."""
    inputs = inputs_of(batch)
    mask = inputs.get("attention_mask") if isinstance(inputs, Mapping) else None
    return mask if isinstance(mask, Tensor) else None


def group_ids(groups: Callable[[Any], Any] | None, batch: Any) -> Tensor:
    """(rows,) int64, the group of each example of a batch."""
    assert groups is not None, "only grouped examples have ids"
    named, rows = groups(batch), rows_of(batch)
    if isinstance(named, list | tuple | np.ndarray) and any(isinstance(n, str) for n in named):
        named = [_number(name) for name in named]
    found = torch.as_tensor(named)
    if found.shape != (rows,) or found.is_floating_point():
        raise InputError(
            f"groups gave {found.dtype} of shape {tuple(found.shape)} for a batch of {rows} "
            f"examples: expected ({rows},) whole numbers or names"
        )
    return found.long()


def _number(name: Any) -> int:
    """The same for the same name, in whatever batch."""
    return int.from_bytes(hashlib.sha256(str(name).encode()).digest()[:7], "big")
