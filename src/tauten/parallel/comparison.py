"""Whether a layout computes what the model does."""

from typing import Any

import torch
from torch import Tensor, nn

from tauten.core.trees import flatten
from tauten.models.packing import packed_modules

_FINE = 1e-3  # relative difference of outputs in float32, from sums in another order
_COARSE = 5e-2  # in 16 bits, and where activations are rounded by parts


def difference(made: Any, expected: Any) -> float:
    """Largest |made - expected| of all floating tensors, over the largest |expected| of each."""
    (ours, form), (theirs, their_form) = flatten(made), flatten(expected)
    if form != their_form:
        return float("inf")
    worst = 0.0
    for one, other in zip(ours, theirs, strict=True):
        if isinstance(one, Tensor) and isinstance(other, Tensor):
            worst = max(worst, _difference(one, other))
    return worst


def _difference(one: Tensor, other: Tensor) -> float:
    if one.shape != other.shape or one.dtype != other.dtype:
        return float("inf")
    one, other = one.detach(), other.detach().to(one.device)
    if one.is_complex():
        one, other = torch.view_as_real(one), torch.view_as_real(other)
    if not one.is_floating_point():
        return 0.0 if torch.equal(one, other) else float("inf")
    one, other = one.float(), other.float()
    odd = ~(one.isfinite() & other.isfinite())
    if not torch.equal(one[odd].nan_to_num(), other[odd].nan_to_num()):
        return float("inf")  # masked scores are -inf in both
    one, other = one[~odd], other[~odd]
    if not one.numel():
        return 0.0
    return float((one - other).abs().max()) / (float(other.abs().max()) or 1.0)


def tolerance(model: Any) -> float:
    """The largest `difference` of a layout that computes the same.

    Args:
        model: A module; or what workers open one from, which may hold anything.
    """
    if not isinstance(model, nn.Module):
        return _COARSE
    rounds = any(layer.activation != "float" for _, layer in packed_modules(model))
    dtypes = {p.dtype for p in model.parameters()}
    return _COARSE if rounds or dtypes & {torch.float16, torch.bfloat16} else _FINE
