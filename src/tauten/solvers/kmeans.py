"""k-means in one dimension: the codebook of least squared error for a set of values."""

import torch
from torch import Tensor
from torch.nn.functional import pad


def kmeans_1d(
    values: Tensor, count: int, weights: Tensor | None = None, iterations: int = 50
) -> Tensor:
    """Lloyd's algorithm on scalars, for each row by itself, from two starts; the better end stays.

    One start is quantiles of density to the power 1/3, the optimal one for many levels (Panter
    and Dite 1951); the other is the uniform grid, so that the result is never worse than it.

    Args:
        values: (n,) or (rows, n) floating, n at least 1.
        count: Centres wanted.
        weights: (n,) how much the squared error of each value counts; None for all the same.
        iterations: Most rounds of assigning and averaging from each start.
    Returns:
        (count,) or (rows, count) float32 centres in ascending order; a repeated value where there
        are fewer.
    """
    ordered, order = values.float().contiguous().sort(-1)
    mass = torch.ones_like(ordered) if weights is None else weights.float()[order]
    low, high = ordered[..., :1], ordered[..., -1:]
    even = low + (high - low) * torch.linspace(0, 1, count, dtype=torch.float32)
    starts = (_spread(ordered, mass, count), even)
    spread, even = (_lloyd(ordered, mass, start, iterations) for start in starts)
    errors = [_squared_error(ordered, mass, centres) for centres in (spread, even)]
    return torch.where(errors[0] <= errors[1], spread, even)


def nearest_code(values: Tensor, centres: Tensor) -> Tensor:
    """Index of the nearest centre, uint8.

    Args:
        values: Of any shape, or (rows, n) for centres a row.
        centres: (k,) or (rows, k), ascending.
    """
    edges = ((centres[..., 1:] + centres[..., :-1]) / 2).contiguous()
    found = torch.searchsorted(edges, values.float().contiguous(), out_int32=True)
    return found.to(torch.uint8)


def storable_book(centres: Tensor) -> Tensor:
    """Round codebooks (..., k) to float16 unless its range would lose the largest of one."""
    reach = centres.abs().amax(-1)
    half = torch.finfo(torch.float16)
    fits = (reach == 0) | (reach >= half.tiny) & (reach <= half.max)
    return centres.half() if bool(fits.all()) else centres


def _lloyd(ordered: Tensor, mass: Tensor, centres: Tensor, iterations: int) -> Tensor:
    """Assign and average; running sums give those of any interval."""
    masses = pad(mass.double().cumsum(-1), (1, 0))
    totals = pad((mass.double() * ordered).cumsum(-1), (1, 0))
    for _ in range(iterations):
        edges = (centres[..., 1:] + centres[..., :-1]) / 2
        cuts = torch.searchsorted(ordered, edges, right=True)
        cuts = pad(pad(cuts, (1, 0)), (0, 1), value=ordered.shape[-1])
        inside, total = masses.gather(-1, cuts).diff(dim=-1), totals.gather(-1, cuts).diff(dim=-1)
        means = total / torch.where(inside > 0, inside, 1.0)
        moved = torch.where(inside > 0, means, centres.double()).float()
        if moved.equal(centres):
            break
        centres = moved
    return centres


def _squared_error(values: Tensor, mass: Tensor, centres: Tensor) -> Tensor:
    """(rows, 1) or (1,) weighted squared error."""
    error = values - centres.gather(-1, nearest_code(values, centres).long())
    return (error.double().square() * mass).sum(-1, keepdim=True)


def _spread(ordered: Tensor, mass: Tensor, count: int) -> Tensor:
    """Quantiles of the values under the cube root of their density."""
    low, span = ordered[..., :1], ordered[..., -1:] - ordered[..., :1]
    bins = min(4096, max(32, ordered.shape[-1] // 64))  # fewer would be noise
    place = (ordered - low) / torch.where(span > 0, span, 1.0) * bins
    place = place.long().clamp_max(bins - 1)
    density = torch.zeros(*ordered.shape[:-1], bins, dtype=torch.float64)
    share = density.scatter_add(-1, place, mass.double()).pow(1 / 3).cumsum(-1)
    share = pad(share / share[..., -1:], (1, 0))
    targets = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    targets = targets.expand(*share.shape[:-1], count).contiguous()
    upper = torch.searchsorted(share, targets).clamp(1, bins)
    below, above = share.gather(-1, upper - 1), share.gather(-1, upper)
    inside = (targets - below) / (above - below)
    return (low + span * (upper - 1 + inside) / bins).float()
