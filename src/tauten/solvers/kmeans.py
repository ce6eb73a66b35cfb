"""k-means in one dimension: the codebook of least squared error for a set of values."""

import torch
from torch import Tensor


def kmeans_1d(values: Tensor, count: int, iterations: int = 20) -> Tensor:
    """Lloyd's algorithm on scalars, started from quantiles of density to the power 1/3.

    That start is the optimal one for many levels (Panter and Dite 1951), so few iterations do.

    Args:
        values: (n,) floating, n at least 1.
        count: Centres wanted.
        iterations: Rounds of assigning and averaging.
    Returns:
        (count,) float32 centres in ascending order; a repeated value where there are fewer.
    """
    ordered = values.float().sort().values
    total = ordered.double().cumsum(0)
    centres = _spread(ordered, count)
    for _ in range(iterations):
        edges = (centres[1:] + centres[:-1]) / 2
        cuts = torch.searchsorted(ordered, edges, right=True)
        ends = torch.cat([cuts, cuts.new_tensor([ordered.numel()])])
        starts = torch.cat([cuts.new_tensor([0]), cuts])
        sums = torch.where(ends > 0, total[(ends - 1).clamp_min(0)], 0.0)
        sums = sums - torch.where(starts > 0, total[(starts - 1).clamp_min(0)], 0.0)
        sizes = ends - starts
        centres = torch.where(sizes > 0, sums / sizes.clamp_min(1), centres.double()).float()
    return centres


def nearest_code(values: Tensor, centres: Tensor) -> Tensor:
    """Index of the nearest centre: values of any shape, centres (k,) ascending -> uint8."""
    edges = ((centres[1:] + centres[:-1]) / 2).contiguous()
    return torch.bucketize(values.float(), edges).to(torch.uint8)


def _spread(ordered: Tensor, count: int) -> Tensor:
    """Quantiles of the values under the cube root of their density."""
    bins = 4096
    low, high = ordered[0].item(), ordered[-1].item()
    if low == high:
        return ordered[:1].expand(count).clone()
    density = torch.histc(ordered, bins, low, high).double().pow(1 / 3)
    share = density.cumsum(0) / density.sum()
    targets = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    position = torch.searchsorted(share, targets).double() + 0.5
    return (low + (high - low) * position / bins).float()
