"""Which weights to zero, and what is best for those that are kept.

For inputs with second moment H, the loss of changing row w by d is d H d^T, as in `second_order`.
A mask is True where a weight is kept.
"""

import torch
from torch import Tensor

from tauten.core.errors import NotApplicableError
from tauten.formats.sparse import VALUE_DTYPES, SparseWeight
from tauten.solvers.second_order import output_error

PENALTIES = (0.1, 0.2, 0.5, 1.0)  # of ADMM, relative to a diagonal of ones; one after the other
SPEED_CAUTION = (
    "pruned layers take fewer bytes on disk; in memory those stay dense that this machine computes "
    "slower packed, for one row or image: `tauten bench MODEL` times them for more"
)
FLOAT16_ERROR = 2**-10  # of a tensor, relative; more means that float16 is out of its range
MOST_STEPS = 100  # of conjugate gradients
ENOUGH = 1e-5  # of the first loss: with less to be gained by a step, the kept weights are fitted


def keep_largest(saliency: Tensor, sparsity: float, pattern: str, by_row: bool = False) -> Tensor:
    """Mark what matters most.

    Args:
        saliency: (out, in) floating.
        sparsity: Part to zero, above 0 and below 1; rounded to whole weights.
        pattern: `unstructured` counts over the whole matrix; `2:4` keeps 2 of each 4 neighbours in
            a row, whatever the sparsity.
        by_row: Count `unstructured` in each row by itself.
    Returns:
        (out, in) bool.
    Raises:
        NotApplicableError: Columns aren't in fours, or nothing would be kept.
    """
    rows, columns = saliency.shape
    if pattern == "2:4":
        if columns % 4:
            raise NotApplicableError(f"{columns} columns: 2:4 needs a multiple of 4")
        cells, kept = saliency.reshape(-1, 4), 2
    else:
        cells = saliency if by_row else saliency.reshape(1, -1)
        kept = cells.shape[1] - round(sparsity * cells.shape[1])
    if kept == 0:
        raise NotApplicableError(f"sparsity={sparsity} leaves nothing of {rows} x {columns}")
    largest = cells.topk(kept, dim=1, sorted=False).indices
    mask = torch.zeros_like(cells, dtype=torch.bool).scatter_(1, largest, True)
    return mask.view(rows, columns)


def wanda_saliency(weight: Tensor, moment: Tensor | None) -> Tensor:
    """|w| ||x||, (out, in) float32, or |w| where the second moment (in, in) of x isn't known.

    Source: Wanda, Sun et al. 2023, arXiv:2306.11695, eq. 1.
    """
    saliency = weight.abs().float()
    return saliency if moment is None else saliency * moment.diagonal().sqrt()


def alternate_mask(
    weight: Tensor, moment: Tensor, sparsity: float, pattern: str, rounds: int
) -> tuple[Tensor, Tensor]:
    """A mask of little output error, decided again and again while the kept weights adapt.

    A dense solution, pulled towards a pruned one, takes turns with the pruned one, made of the
    largest of the dense one and what it was off by so far (the dual). Columns are scaled to inputs
    of equal strength, so that "largest" is the saliency |w| sqrt(H_jj) of Wanda.

    Args:
        weight: (out, in) floating.
        moment: (in, in) float32, positive definite: H.
        sparsity: As for `keep_largest`.
        pattern: As for `keep_largest`.
        rounds: Turns at each of `PENALTIES`, at least 1.
    Returns:
        The mask, and (out, in) float32 values that are zero elsewhere and fit nearly best.
    Cost: O(rounds * out * in^2 + in^3) time, five (out, in) and three (in, in) buffers.
    Source: ADMM for a fixed mask by Boza 2024, arXiv:2401.02938, with masks re-decided in each
        round by the whole matrix, as ALPS, Meng et al. 2024, arXiv:2406.07831.
    """
    strength = moment.diagonal().sqrt()
    scaled, correlation = weight.float() * strength, moment / (strength[:, None] * strength)
    pull = scaled @ correlation
    mask = keep_largest(scaled.abs(), sparsity, pattern)
    pruned, dual = scaled * mask, torch.zeros_like(scaled)
    before = PENALTIES[0]
    for penalty in PENALTIES:
        system = correlation + penalty * torch.eye(len(strength), dtype=torch.float32)
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(system))
        dual *= before / penalty  # it is counted in units of the penalty
        before = penalty
        for _ in range(rounds):
            dense = (pull + penalty * (pruned - dual)) @ inverse
            dual += dense
            mask = keep_largest(dual.abs(), sparsity, pattern)
            pruned = dual * mask
            dual -= pruned
    return mask, pruned / strength


def refit_kept(weight: Tensor, moment: Tensor, values: Tensor, mask: Tensor) -> Tensor:
    """Kept weights of least output error: least squares for each row by itself.

    Args:
        weight: (out, in) floating, what outputs are compared with.
        moment: (in, in) of the same dtype, positive definite.
        values: (out, in), where to start; zero where the mask is False.
        mask: (out, in) bool.
    Returns:
        (out, in), no row's output error grows.
    Cost: O(steps * out * in^2) time with at most `MOST_STEPS` steps; a few do after ADMM.
    Source: conjugate gradients with the diagonal as preconditioner (Hestenes and Stiefel 1952).
    """
    diagonal = moment.diagonal()
    residual = ((weight - values) @ moment) * mask  # half the negative gradient
    direction = residual / diagonal
    power = (residual * direction).sum(1, keepdim=True)
    enough = ENOUGH * output_error(weight - values, moment).sum()
    for _ in range(MOST_STEPS):
        if power.sum() <= enough:
            break
        bent = (direction @ moment) * mask
        curved = (direction * bent).sum(1, keepdim=True)
        length = torch.where(curved > 0, power / curved, 0.0)
        values = values + length * direction
        residual = residual - length * bent
        steepest = residual / diagonal
        before, power = power, (residual * steepest).sum(1, keepdim=True)
        direction = steepest + torch.where(before > 0, power / before, 0.0) * direction
    return values


class SweepMask:
    """Decides a mask block by block inside `second_order.sweep`, by what a zero would cost there.

    Setting weight w_j to zero, with the best change of the columns still to be decided, costs
    w_j^2 / [H^-1]_jj (Hassibi and Stork 1993); the factor's diagonal is the root of that divisor.

    Attributes:
        mask: (out, in) bool; a block's columns are final once it was prepared.

    Source: SparseGPT, Frantar and Alistarh 2023, arXiv:2301.00774, section 3.
    """

    def __init__(self, shape: torch.Size, sparsity: float, pattern: str):
        self.mask = torch.zeros(shape, dtype=torch.bool)
        self._sparsity, self._pattern = sparsity, pattern

    def prepare(self, columns: Tensor, values: Tensor, diagonal: Tensor) -> None:
        """Decide a block, as `sweep` asks for it."""
        saliency = (values / diagonal).square()
        self.mask[:, columns] = keep_largest(saliency, self._sparsity, self._pattern)


def pack_floats(values: Tensor, mask: Tensor, weight: Tensor) -> SparseWeight:
    """Pack kept values in the 16 bits of a weight's dtype, or in float16 if that holds float32s.

    Rounding to 16 bits changes less than a thousandth of what half of the zeros do.

    Args:
        values: (out, in) floating.
        mask: (out, in) bool.
        weight: (out, in, ...) what they come from; tells the shape and dtype.
    """
    kept, dtype = values * mask, weight.dtype
    if dtype not in VALUE_DTYPES or dtype == torch.float32:
        lost = (kept.half().to(kept.dtype) - kept).norm()
        dtype = torch.float16 if lost <= FLOAT16_ERROR * kept.norm() else torch.float32
    shape = weight.shape
    return SparseWeight.from_dense(values.to(dtype).view(shape), mask.view(shape))
