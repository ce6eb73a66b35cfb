"""The matrix of low rank that does most of what another does."""

import torch
from torch import Tensor

from tauten.solvers.second_order import damped_cholesky

DAMPING = 0.01  # of inputs' second moment, relative to its mean diagonal


def nearest_low_rank(
    matrix: Tensor, rank: int, moment: Tensor | None = None, damping: float = DAMPING
) -> tuple[Tensor, Tensor]:
    """Two narrow factors whose product has outputs nearest to those of a matrix D.

    With H = L L^T the second moment of inputs x, the mean of |(D - U V) x|^2 is |D L - U V L|^2.
    The best U V L is the truncated singular value decomposition of D L; with its left vectors P
    that is P P^T D L, so U = P and V = P^T D, and L needs no inverse.

    Args:
        matrix: (out, in) floating.
        rank: At most the smaller of both sizes.
        moment: (in, in) floating, mean of x x^T; None counts all inputs alike.
        damping: What is added to the moment's diagonal, relative to its mean; more, where it
            takes that to factorize it.
    Returns:
        U (out, rank), its columns orthonormal, and V (rank, in), float32.
    Raises:
        NotApplicableError: No damping helps: the moment is zero or not finite.
    Cost: O(in^3 + out * in * min(out, in)) time.
    Source: the whitening of SVD-LLM, Wang et al. 2024, arXiv:2403.07378, section 3.1, with V
    written without the inverse of the Cholesky factor.
    """
    matrix = matrix.float()
    whitened = matrix if moment is None else matrix @ damped_cholesky(moment.float(), damping)
    up = torch.linalg.svd(whitened, full_matrices=False)[0][:, :rank].contiguous()
    return up, up.t() @ matrix
