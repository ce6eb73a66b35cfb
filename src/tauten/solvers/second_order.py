"""The second-order engine: decide a weight column by column, and let the rest make up for it.

For inputs x with second moment H = mean of x x^T, the loss of changing row w by d is d H d^T. When
a column is changed, the best change of the columns not yet decided follows from the Cholesky
factor of H^-1 (Hassibi and Stork 1993; Frantar et al. 2022, arXiv:2210.17323). What a column is
changed to is up to the caller: the nearest level of a grid, or zero.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from tauten.core.errors import NotApplicableError
from tauten.solvers.columns import Decide, decide_columns

BLOCK = 64  # columns between two updates of all that follow
MOST_DAMPING = 10.0  # relative to the mean diagonal; beyond it H says nothing


@dataclass(frozen=True)
class Curvature:
    """H of a layer, ready for a sweep.

    Attributes:
        order: (in,) int64, columns in the order they are decided.
        factor: (in, in) float32, upper Cholesky factor U of H^-1 = U^T U, in that order.
        damping: What was added to the diagonal, relative to its mean.
    """

    order: Tensor
    factor: Tensor
    damping: float


def curvature(moment: Tensor, damping: float, by_importance: bool) -> Curvature:
    """Factorize H, with more damping where less isn't enough.

    Args:
        moment: (in, in) floating, symmetric, positive semidefinite but for rounding.
        damping: First value added to the diagonal, relative to its mean; grows tenfold until the
            factorization succeeds.
        by_importance: Decide columns with a large diagonal first; else from left to right.
    Raises:
        NotApplicableError: H is zero or not finite, so that no damping helps.
    """
    diagonal = moment.diagonal()
    mean = float(diagonal.mean())
    if not 0 < mean < float("inf"):
        raise NotApplicableError("the layer's inputs are all zero or not finite")
    order = torch.arange(len(diagonal))
    if by_importance:
        order = torch.argsort(diagonal, descending=True, stable=True)
    ordered = moment[order][:, order]
    # From last to first, H = R R^T with R upper, so that U is R^-1: H^-1 itself is never formed,
    # whose own factorization would take twice the time and lose half the digits.
    while damping <= MOST_DAMPING:
        lower, failed = torch.linalg.cholesky_ex(damped(ordered, damping).flip(0, 1))
        if not failed:
            eye = torch.eye(len(order), dtype=lower.dtype)
            factor = torch.linalg.solve_triangular(lower.flip(0, 1), eye, upper=True)
            if bool(factor.isfinite().all()):
                return Curvature(order, factor, damping)
        damping *= 10
    raise NotApplicableError("the second moment of the layer's inputs can't be factorized")


def damped(moment: Tensor, damping: float) -> Tensor:
    """A copy of H with `damping` times its mean diagonal added to the diagonal."""
    copy = moment.clone()
    copy.diagonal().add_(damping * moment.diagonal().mean())
    return copy


def damped_cholesky(moment: Tensor, damping: float) -> Tensor:
    """Lower Cholesky factor of H with as much damping as it takes.

    Args:
        moment: As for `curvature`.
        damping: As for `curvature`.
    Raises:
        NotApplicableError: No damping helps.
    """
    while damping <= MOST_DAMPING:
        lower: Tensor
        lower, failed = torch.linalg.cholesky_ex(damped(moment, damping))
        if not failed and bool(lower.isfinite().all()):
            return lower
        damping *= 10
    raise NotApplicableError("the second moment of a layer's inputs can't be factorized")


def sweep(
    weight: Tensor,
    curve: Curvature,
    decide: Decide,
    block: int = BLOCK,
    prepare: Callable[[Tensor, Tensor, Tensor], None] | None = None,
) -> Tensor:
    """Decide all columns in order, each with its error spread over those that follow.

    Args:
        weight: (out, in) floating.
        curve: From `curvature`.
        decide: From the adjusted values (out,) of a column and its index to its final values.
        block: Columns between two updates of all that follow.
        prepare: Called before a block with its columns' indices (block,), adjusted values
            (out, block) and diagonal of the factor (block,), for decisions on a block as a whole.
    Returns:
        (out, in) float32, the final values.
    Cost: O(out * in^2) time, two (out, in) buffers.
    """
    order, factor = curve.order, curve.factor
    work = weight.float()[:, order].contiguous()
    columns = order.tolist()
    for start in range(0, len(columns), block):
        stop = min(start + block, len(columns))
        values, local = work[:, start:stop], factor[start:stop, start:stop]
        if prepare is not None:
            prepare(order[start:stop], values, local.diagonal())
        errors = decide_columns(values, local, columns[start:stop], decide)
        work[:, stop:].addmm_(errors, factor[start:stop, stop:], alpha=-1)
    result = torch.empty_like(work)
    result[:, order] = work
    return result


def descend(weight: Tensor, values: Tensor, moment: Tensor, decide: Decide) -> Tensor:
    """Decide each column once more, all others as they are: no row's output error grows.

    Args:
        weight: (out, in) floating, what outputs are compared with.
        values: (out, in) float32, levels that each column has now, by a sweep for instance.
        moment: (in, in) floating with a positive diagonal.
        decide: As for `sweep`; must give the level nearest to each value.
    Returns:
        (out, in) float32, the final values.
    Cost: O(out * in^2) time, two (out, in) buffers.
    Source: coordinate descent as in QuantEase, Behdin et al. 2023, arXiv:2309.01885.
    """
    final, change = values.clone(memory_format=torch.contiguous_format), values - weight.float()
    for start in range(0, weight.shape[1], BLOCK):
        stop = min(start + BLOCK, weight.shape[1])
        local = moment[start:stop, start:stop]
        slope = change @ moment[:, start:stop]  # half the gradient, (out, block)
        values, columns = final[:, start:stop], range(start, stop)
        change[:, start:stop] += decide_columns(values, local, columns, decide, slope)
    return final


def output_error(change: Tensor, moment: Tensor) -> Tensor:
    """Mean squared change of a layer's outputs: d H d^T of each row of (out, in), -> (out,)."""
    return ((change @ moment) * change).sum(1)


def corrected_target(weight: Tensor, shift: Tensor, curve: Curvature, strength: float) -> Tensor:
    """The weight whose outputs on moved inputs come nearest to the original outputs.

    With x the inputs that the layer gets and x + s those of the original model, W x' is least
    wrong for W' = W + W E[s x^T] H^-1; `strength` goes a part of that way.

    Args:
        weight: (out, in) floating.
        shift: (in, in), E[s x^T].
        curve: Of the inputs that the layer gets, whose damping tempers the correction.
        strength: 0 to 1.
    Source: Arai and Ichikawa 2025, arXiv:2504.09629, eq. 8; the same idea as GPTAQ and Qronos.
    """
    order, factor = curve.order, curve.factor
    moved = (weight.float() @ shift)[:, order]
    change = torch.empty_like(moved)
    change[:, order] = moved @ factor.t() @ factor
    return weight.float() + strength * change
