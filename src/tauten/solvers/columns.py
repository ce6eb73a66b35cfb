"""Decide columns of a matrix in order, each with its consequences for those that follow."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tauten.runtime import library, solve

# From the adjusted values (out,) of a column and its index to its final values.
Decide = Callable[[Tensor, int], Tensor]


@dataclass(frozen=True)
class GridRounder:
    """From a column's values (out,) and its index to the nearest levels of its group.

    Attributes:
        step: (out, groups) float32; a level is step * code + low.
        low: As `step`.
        top: The largest code.
        size: Columns a group.
    """

    step: Tensor
    low: Tensor
    top: int
    size: int

    def __call__(self, values: Tensor, column: int) -> Tensor:
        step, low = self.step[:, column // self.size], self.low[:, column // self.size]
        inverse = torch.where(step == 0, 0.0, 1 / step)  # of a group with one level only
        return ((values - low) * inverse).clamp_(0, self.top).round_().mul_(step).add_(low)


def decide_columns(
    values: Tensor,
    local: Tensor,
    columns: Sequence[int],
    decide: Decide,
    slope: Tensor | None = None,
) -> Tensor:
    """Decide some columns in order; rounding to a grid is done by the native library if it's there.

    Args:
        values: (out, width) float32, a part of a matrix; gets the decisions.
        local: (width, width) float32 that carries the effect of a column to the later ones.
        columns: Index of each in the whole weight.
        decide: What a column becomes.
        slope: (out, width) float32 for a descent, half the gradient at `values`; is changed. A
            column is then decided at its best value for all others as they are.
    Returns:
        (out, width) float32: in a sweep how far each value was changed, over the diagonal of
        `local`; in a descent how far it was moved.
    """
    native = library.load() if isinstance(decide, GridRounder) else None
    if native is not None and isinstance(decide, GridRounder):
        groups = torch.tensor(columns) // decide.size
        levels = decide.step, decide.low, decide.top
        return solve.decide_columns(native, values, local, groups, levels, slope)
    changes = torch.empty(values.shape, dtype=torch.float32)
    for j, index in enumerate(columns):
        value = values[:, j]
        if slope is None:
            decided = decide(value, index)
            changes[:, j] = (value - decided) / local[j, j]
            values[:, j + 1 :].addr_(changes[:, j], local[j, j + 1 :], alpha=-1)
        else:
            decided = decide(value - slope[:, j] / local[j, j], index)
            changes[:, j] = decided - value
            slope[:, j + 1 :].addr_(changes[:, j], local[j, j + 1 :])
        values[:, j] = decided
    return changes
