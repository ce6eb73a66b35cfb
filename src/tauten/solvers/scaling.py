"""Scales of columns that make a weight, and what it is multiplied by, lose less in rounding.

A scale s multiplies the columns of a weight and divides their inputs. Which one is best is found by
trying powers of simple statistics and taking the one with the least loss.
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

SMALLEST = 1e-6  # relative to the largest statistic: channels that are never used aren't 0


def tied(values: Tensor, channels: Tensor) -> Tensor:
    """The largest value of each channel, for each of its columns.

    Args:
        values: (in,) floating, not negative.
        channels: (in,) int64, channel of each column.
    Returns:
        (in,), nowhere below a small fraction of the largest, and never 0.
    """
    largest = torch.zeros(int(channels.max()) + 1, dtype=torch.float32).scatter_reduce(
        0, channels, values, "amax"
    )
    floor = SMALLEST * float(values.max()) or 1.0
    return largest[channels].clamp_min(floor)


def centred(scale: Tensor) -> Tensor:
    """A scale (in,) with a geometric mean of 1."""
    return scale / scale.log().mean().exp()


def spread_rows(matrix: Tensor, most: int) -> Tensor:
    """At most so many rows of a matrix, evenly spread: they stand for all of them."""
    return matrix[:: -(-len(matrix) // most)]


def least_lossy(scales: Iterable[Tensor], loss: Callable[[Tensor], float]) -> Tensor:
    """The scale with the least loss; the first of them where several are equal."""
    return min(scales, key=loss)
