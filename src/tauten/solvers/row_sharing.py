"""Few rows that the rows of a matrix are multiples of: k-means of directions."""

import torch
from torch import Tensor

SETTLED = 1e-5  # change of a shared row of length 1 in a turn
CHUNK = 2**22  # products of rows and shared rows that are held at once


def spread_rows(matrix: Tensor, count: int) -> Tensor:
    """Rows to start from: the longest, then again and again the one that these serve worst.

    Args:
        matrix: (out, in) float32.
        count: Rows wanted.
    Returns:
        (count,) int64 or fewer, where the others are multiples of these.
    Cost: O(count * out * in) time.
    Source: farthest-first traversal, Gonzalez 1985, with the part of a row that no multiple of
        another one serves for the distance.
    """
    norms = matrix.square().sum(1)
    left, chosen = norms.clone(), []
    for _ in range(count):
        pick = int(left.argmax())
        if left[pick] <= 0:
            break
        chosen.append(pick)
        served = (matrix @ matrix[pick]).square() / norms[pick]
        left = torch.minimum(left, norms - served)
        left[pick] = 0
    return torch.tensor(chosen, dtype=torch.int64)


def share_rows(
    matrix: Tensor, start: Tensor, iterations: int = 20
) -> tuple[Tensor, Tensor, Tensor]:
    """Shared rows, and of each row the index and factor, of least squared error.

    In turns each row takes the shared row whose multiple is nearest, and each shared row becomes
    what serves its rows best for their factors; no turn is worse than the one before.

    Args:
        matrix: (out, in) float32.
        start: (rows, in) float32, shared rows to start from, none zero.
        iterations: Most turns.
    Returns:
        (rows, in) float32 of length 1, (out,) int64, (out,) float32 of either sign.
    Cost: O(iterations * rows * out * in) time.
    Source: k-means (Lloyd 1982) with a gain for each vector, as in gain-shape vector quantization.
    """
    shared = torch.nn.functional.normalize(start)
    index, factor = _nearest(matrix, shared)
    for _ in range(iterations):
        power = torch.zeros(len(shared), dtype=torch.float32).index_add_(0, index, factor.square())
        total = torch.zeros_like(shared).index_add_(0, index, factor[:, None] * matrix)
        fitted = torch.nn.functional.normalize(total)
        before, shared = shared, torch.where(power[:, None] > 0, fitted, shared)
        index, factor = _nearest(matrix, shared)
        if float((shared - before).abs().max()) < SETTLED:
            break
    return shared, index, factor


def _nearest(matrix: Tensor, shared: Tensor) -> tuple[Tensor, Tensor]:
    """Index of the shared row of length 1 whose multiple is nearest, and the factor: (out,)."""
    found = []
    for rows in matrix.split(max(1, CHUNK // len(shared))):
        products = rows @ shared.t()
        index = products.abs().argmax(1)
        found.append((index, products.gather(1, index[:, None])[:, 0]))
    return torch.cat([index for index, _ in found]), torch.cat([factor for _, factor in found])
