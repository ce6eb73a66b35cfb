"""Which channels to remove: what the layers that read them would lose."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tauten.solvers.second_order import damped_cholesky


@dataclass(frozen=True)
class Reader:
    """A layer that reads channels.

    Attributes:
        weight: (out, in) floating.
        moment: (in, in) second moment of its inputs, or (in,) its diagonal alone: then columns
            count as independent.
        columns: (channels, span) int64, the columns that each channel is read by.
    """

    weight: Tensor
    moment: Tensor
    columns: Tensor


def independent_losses(readers: Sequence[Reader]) -> Tensor:
    """What is lost with each channel alone, by the diagonal of the moments.

    Args:
        readers: All that read the same channels.
    Returns:
        (channels,) mean square of the lost output relative to the whole output, summed over
        readers.
    """
    total = torch.zeros(len(readers[0].columns))
    for reader in readers:
        diagonal = reader.moment if reader.moment.dim() == 1 else reader.moment.diagonal()
        energy = reader.weight.float().square().sum(0) * diagonal
        total += energy[reader.columns].sum(1) / energy.sum().clamp(min=1e-30)
    return total


def removal_order(
    readers: Sequence[Reader], count: int, parts: int = 1, damping: float = 0.01
) -> Tensor:
    """Channels in the order in which they are missed least, each time the rest makes up for it.

    One channel after another goes: the one whose removal costs the readers' outputs least after
    the best change of all columns that are left, as optimal brain surgery does it with a weight.
    So of two equal channels only one goes.

    Args:
        readers: All that read the same channels; those with a full moment share `columns`' order.
        count: Channels to remove; a multiple of `parts`.
        parts: Runs of neighbouring channels that each lose the same number.
        damping: Added to each moment's diagonal, relative to its mean.
    Returns:
        (count,) int64.
    Raises:
        NotApplicableError: A moment can't be factorized.
    Cost: O(count * in * (in + out) * span) time and (in, in) memory a reader.
    Source: ZipLM, Kurtic et al. 2023, arXiv:2302.04089, eq. 4 and 5, summed over all that read a
        channel.
    """
    states = [_Sweep(reader, damping) for reader in readers]
    channels = len(readers[0].columns)
    part_of = torch.arange(channels) * parts // channels
    left = torch.full((parts,), count // parts)
    gone = torch.zeros(channels, dtype=torch.bool)
    order = []
    for _ in range(count):
        loss = torch.stack([state.losses() for state in states]).sum(0)
        loss[gone | (left[part_of] == 0)] = torch.inf
        channel = int(loss.argmin())
        gone[channel] = True
        left[part_of[channel]] -= 1
        order.append(channel)
        for state in states:
            state.remove(channel)
    return torch.tensor(order, dtype=torch.long)


class _Sweep:
    """A reader while channels go: its weight adjusted, and the inverse of the moment of the rest.

    A removed channel's block of the inverse is the identity, and its weight zero: it costs nothing
    more and moves nothing.
    """

    def __init__(self, reader: Reader, damping: float):
        self._columns = reader.columns
        self._weight = reader.weight.float().clone()
        self._diagonal = reader.moment.float() if reader.moment.dim() == 1 else None
        if self._diagonal is None:
            lower = damped_cholesky(reader.moment.double(), damping)
            self._inverse = torch.cholesky_inverse(lower).float()
            energy = ((self._weight @ reader.moment.float()) * self._weight).sum()
        else:
            energy = (self._weight.square() * self._diagonal).sum()
        self._energy = energy.clamp(min=1e-30)

    def losses(self) -> Tensor:
        """(channels,) relative loss of each channel."""
        if self._diagonal is not None:
            energy = self._weight.square().sum(0) * self._diagonal
            return energy[self._columns].sum(1) / self._energy
        columns = self._columns
        blocks = self._inverse[columns[:, :, None], columns[:, None, :]]  # (channels, span, span)
        weights = self._weight[:, columns].permute(1, 2, 0)  # (channels, span, out)
        lost: Tensor = (weights * torch.linalg.solve(blocks, weights)).sum((1, 2))
        return lost / self._energy

    def remove(self, channel: int) -> None:
        """Remove one; columns that are left take over what they can."""
        own = self._columns[channel]
        if self._diagonal is None:
            rows = self._inverse[own]  # (span, in)
            step = torch.linalg.solve(rows[:, own], rows)
            self._weight -= self._weight[:, own] @ step
            self._inverse -= rows.t() @ step
            self._inverse[own], self._inverse[:, own] = 0.0, 0.0
            self._inverse[own, own] = 1.0
        self._weight[:, own] = 0.0
