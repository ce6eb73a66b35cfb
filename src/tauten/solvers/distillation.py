"""How far a model's outputs are from those of the model it is to imitate."""

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten


def output_loss(output: Any, target: Any, mask: Tensor | None) -> Tensor:
    """What a student is trained to make small.

    Logits of a language model (an output with `logits` of (rows, length, vocabulary)) are compared
    by KL divergence, other outputs by the squared error over the target's energy.

    Args:
        output: Of the student, with gradients.
        target: Of the teacher, of the same form.
        mask: (rows, length) bool, False at padding; None where all count.
    Returns:
        A scalar: mean over what counts.
    """
    logits, wanted = getattr(output, "logits", None), getattr(target, "logits", None)
    if logits is not None and wanted is not None and logits.dim() == 3:
        chosen = (slice(None), slice(None)) if mask is None else mask
        return divergence(logits[chosen].flatten(0, -2), wanted[chosen].flatten(0, -2))
    found, expected = _floating(output), _floating(target)
    pairs = zip(found, expected, strict=True)
    lost = torch.stack([(a.float() - b.float()).square().sum() for a, b in pairs])
    energy = torch.stack([b.float().square().sum() for b in expected])
    return lost.sum() / energy.sum()


def divergence(logits: Tensor, wanted: Tensor, chunk: int = 512) -> Tensor:
    """Mean KL(wanted || logits), a chunk of rows at a time to bound the memory for probabilities.

    Args:
        logits: (rows, classes) of the student.
        wanted: (rows, classes) of the teacher.
        chunk: Rows at once.
    """
    parts = [
        torch.utils.checkpoint.checkpoint(_summed, a, b, use_reentrant=False)
        for a, b in zip(logits.split(chunk), wanted.split(chunk), strict=True)
    ]
    return torch.stack(parts).sum() / len(logits)


def _summed(logits: Tensor, wanted: Tensor) -> Tensor:
    target = wanted.float().log_softmax(-1)
    return (target.exp() * (target - logits.float().log_softmax(-1))).sum()


def _floating(output: Any) -> list[Tensor]:
    leaves = tree_flatten(dict(output) if hasattr(output, "keys") else output)[0]
    return [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point()]
