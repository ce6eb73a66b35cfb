"""How far a model's outputs are from those of the model it is to imitate."""

import math
from typing import Any

import torch
import torch.utils.checkpoint
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


def top_classes(logits: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """A teacher's prediction in little room: its likeliest classes, and all others as one.

    Args:
        logits: (rows, classes).
        count: How many to tell apart, k; all, where there are no more.
    Returns:
        Indices (rows, k) int64, and log-probabilities (rows, k + 1) float32, of which the last is
        that of all others; (rows, k) where there are none.
    """
    indices = logits.topk(min(count, logits.shape[1])).indices
    return indices, _coarse(logits.float(), indices)


def top_divergence(
    logits: Tensor, indices: Tensor, wanted: Tensor, skew: float = 0.0, chunk: int = 512
) -> Tensor:
    """Mean KL(p || skew p + (1 - skew) q) of predictions cut down to the teacher's top classes.

    Merging classes never adds to a divergence, so this is a lower bound of that over all classes,
    and equal to it where the top classes are all.

    Args:
        logits: (rows, classes) of the student, q.
        indices: As `top_classes` of the teacher gives them.
        wanted: Likewise, p.
        skew: In [0, 1); more than 0 bounds the loss and its slope where q is near 0.
        chunk: Rows at once, to bound the memory for probabilities.
    Source: skew KL divergence of DistiLLM (Ko et al. 2024, arXiv:2402.03898), eq. 3.
    """
    rows = zip(logits.split(chunk), indices.split(chunk), wanted.split(chunk), strict=True)
    parts = [
        torch.utils.checkpoint.checkpoint(
            _top_summed, *part, skew, use_reentrant=False, preserve_rng_state=False
        )
        for part in rows
    ]
    return torch.stack(parts).sum() / len(logits)


def relative_error(found: Tensor, wanted: Tensor) -> Tensor:
    """Squared error over the variance of what is wanted, all features together.

    0 is equality; 1 is what the mean of `wanted` over its rows would reach.

    Args:
        found: (rows, ...) floating.
        wanted: Of the same shape.
    """
    wanted = wanted.float()
    mean = wanted.mean(0) if len(wanted) > 1 else 0.0  # of one row the variance isn't known
    spread = (wanted - mean).square().sum()
    lost = (found.float() - wanted).square().sum()
    return lost / spread.clamp(min=torch.finfo(torch.float32).tiny)


def _coarse(logits: Tensor, indices: Tensor) -> Tensor:
    """Log-probabilities of some classes, and last that of all others together, if there are any."""
    chosen = logits.gather(1, indices)
    if indices.shape[1] < logits.shape[1]:
        others = logits.scatter(1, indices, -torch.inf).logsumexp(1, keepdim=True)
        chosen = torch.cat([chosen, others], 1)
    return chosen.log_softmax(1)


def _top_summed(logits: Tensor, indices: Tensor, wanted: Tensor, skew: float) -> Tensor:
    found, wanted = _coarse(logits.float(), indices), wanted.float()
    if skew:
        found = torch.logaddexp(wanted + math.log(skew), found + math.log1p(-skew))
    return (wanted.exp() * (wanted - found)).sum()


def _floating(output: Any) -> list[Tensor]:
    leaves = tree_flatten(dict(output) if hasattr(output, "keys") else output)[0]
    return [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point()]
