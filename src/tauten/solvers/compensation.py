"""Least squares after columns of a weight are removed: the rest takes over what it can."""

import torch
from torch import Tensor

from tauten.solvers.second_order import damped_cholesky


def with_constant(moment: Tensor, mean: Tensor) -> Tensor:
    """Second moment of inputs that end in a constant 1: (in, in), (in,) -> (in + 1, in + 1).

    A layer's bias is the weight of that input, and so takes part like any other column.
    """
    top = torch.cat([moment, mean[:, None]], 1)
    return torch.cat([top, torch.cat([mean, mean.new_ones(1)])[None]])


def compensated(weight: Tensor, moment: Tensor, kept: Tensor, damping: float) -> Tensor:
    """The weight that, without some columns, gives outputs nearest to those with them.

    With k what is kept and r what is removed it is W_k + W_r H_rk H_kk^-1, the solution of
    min |W x - W' x_k|^2 over inputs x with second moment H.

    Args:
        weight: (out, in) floating.
        moment: (in, in) floating, mean of x x^T.
        kept: (in,) bool.
        damping: Added to H_kk's diagonal, relative to its mean; grows tenfold until it can be
            factorized. It keeps the change small where there are few samples.
    Returns:
        (out, in) float32, zero in the removed columns.
    Raises:
        NotApplicableError: No damping helps.
    Cost: O(in^3 + out * in^2) time in float64.
    Source: Frantar and Alistarh 2022, arXiv:2208.11580 (optimal brain compression), for a group
        of columns in closed form.
    """
    weight, moment = weight.double(), moment.double()
    inner, cross = moment[kept][:, kept], moment[~kept][:, kept]
    lower = damped_cholesky(inner, damping)
    change = torch.cholesky_solve(cross.t(), lower).t()  # (removed, kept)
    result = torch.zeros_like(weight)
    result[:, kept] = weight[:, kept] + weight[:, ~kept] @ change
    return result.float()
