"""k-means in one dimension: the codebook of least squared error for a set of values."""

import torch
from torch import Tensor


def kmeans_1d(values: Tensor, count: int, iterations: int = 50) -> Tensor:
    """Lloyd's algorithm on scalars, from two starts; the better end is kept.

    One start is quantiles of density to the power 1/3, the optimal one for many levels (Panter
    and Dite 1951); the other is the uniform grid, so that the result is never worse than it.

    Args:
        values: (n,) floating, n at least 1.
        count: Centres wanted.
        iterations: Most rounds of assigning and averaging from each start.
    Returns:
        (count,) float32 centres in ascending order; a repeated value where there are fewer.
    """
    ordered = values.float().sort().values
    total = ordered.double().cumsum(0)
    even = torch.linspace(ordered[0].item(), ordered[-1].item(), count)
    ends = [_lloyd(ordered, total, s, iterations) for s in (_spread(ordered, count), even)]
    return min(ends, key=lambda centres: _squared_error(ordered, centres))


def nearest_code(values: Tensor, centres: Tensor) -> Tensor:
    """Index of the nearest centre: values of any shape, centres (k,) ascending -> uint8."""
    edges = ((centres[1:] + centres[:-1]) / 2).contiguous()
    return torch.bucketize(values.float().contiguous(), edges, out_int32=True).to(torch.uint8)


def _lloyd(ordered: Tensor, total: Tensor, centres: Tensor, iterations: int) -> Tensor:
    """Assign and average; `total` is the running sum of the ordered values."""
    for _ in range(iterations):
        edges = (centres[1:] + centres[:-1]) / 2
        cuts = torch.searchsorted(ordered, edges, right=True)
        ends = torch.cat([cuts, cuts.new_tensor([ordered.numel()])])
        starts = torch.cat([cuts.new_tensor([0]), cuts])
        sums = torch.where(ends > 0, total[(ends - 1).clamp_min(0)], 0.0)
        sums = sums - torch.where(starts > 0, total[(starts - 1).clamp_min(0)], 0.0)
        sizes = ends - starts
        moved = torch.where(sizes > 0, sums / sizes.clamp_min(1), centres.double()).float()
        if moved.equal(centres):
            break
        centres = moved
    return centres


def _squared_error(values: Tensor, centres: Tensor) -> float:
    return float((values - centres[nearest_code(values, centres).int()]).double().square().sum())


def _spread(ordered: Tensor, count: int) -> Tensor:
    """Quantiles of the values under the cube root of their density."""
    low, high = ordered[0].item(), ordered[-1].item()
    if low == high:
        return ordered[:1].expand(count).clone()
    bins = min(4096, max(32, ordered.numel() // 64))  # fewer would be noise
    density = torch.histc(ordered, bins, low, high).double().pow(1 / 3)
    share = torch.cat([density.new_zeros(1), density.cumsum(0) / density.sum()])
    targets = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    upper = torch.searchsorted(share, targets).clamp(1, bins)
    inside = (targets - share[upper - 1]) / (share[upper] - share[upper - 1])
    return (low + (high - low) * (upper - 1 + inside) / bins).float()
