"""Which channels to remove: what the layers that read them would lose."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tauten.core.errors import NotApplicableError
from tauten.solvers.second_order import damped_cholesky

WAITING = 32  # removals whose changes of an inverse are made together


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
    total = torch.zeros(len(readers[0].columns), dtype=torch.float32)
    for reader in readers:
        diagonal = reader.moment if reader.moment.dim() == 1 else reader.moment.diagonal()
        energy = reader.weight.float().square().sum(0) * diagonal
        total += energy[reader.columns].sum(1) / energy.sum().clamp(min=1e-30)
    return total


@dataclass(frozen=True)
class Removal:
    """Channels in the order in which they go, and what each loses.

    Attributes:
        order: (count,) int64; of every `parts` of them in a row, each part loses one.
        losses: (count,) mean square of the lost output relative to the whole output, summed over
            readers; each in addition to those before it.
    """

    order: Tensor
    losses: Tensor


def removal_order(
    readers: Sequence[Reader], count: int, parts: int = 1, damping: float = 0.01
) -> Removal:
    """Channels in the order in which they are missed least, each time the rest makes up for it.

    One channel after another goes: the one whose removal costs the readers' outputs least after
    the best change of all columns that are left, as optimal brain surgery does it with a weight.
    So of two equal channels only one goes. Where only diagonals are known nothing can make up.

    Args:
        readers: All that read the same channels.
        count: Channels to remove; a multiple of `parts`.
        parts: Runs of neighbouring channels that each lose the same number.
        damping: Added to each moment's diagonal, relative to its mean.
    Raises:
        NotApplicableError: A moment can't be factorized.
    Cost: O(count * in * (in + out) * span) time and (in, in) memory a reader.
    Source: ZipLM, Kurtic et al. 2023, arXiv:2302.04089, eq. 4 and 5, summed over all that read a
        channel.
    """
    if all(reader.moment.dim() == 1 for reader in readers):
        return _independent_order(independent_losses(readers), count, parts)
    states = [_Sweep(reader, damping) for reader in readers]
    channels = len(readers[0].columns)
    part_of = torch.arange(channels) * parts // channels
    gone = torch.zeros(channels, dtype=torch.bool)
    waiting = torch.zeros(parts, dtype=torch.bool)  # parts that lost one before others did
    order, losses = [], []
    for _ in range(count):
        loss = torch.stack([state.losses() for state in states]).sum(0)
        loss[gone | waiting[part_of]] = torch.inf
        channel = int(loss.argmin())
        order.append(channel)
        losses.append(float(loss[channel]))
        gone[channel] = waiting[part_of[channel]] = True
        waiting &= ~waiting.all()
        for state in states:
            state.remove(channel)
    return Removal(torch.tensor(order, dtype=torch.long), torch.tensor(losses, dtype=torch.float32))


def _independent_order(losses: Tensor, count: int, parts: int) -> Removal:
    by_part = losses.view(parts, -1)
    starts = torch.arange(parts)[:, None] * by_part.shape[1]
    order = (by_part.argsort(dim=1, stable=True) + starts).t().flatten()[:count]
    return Removal(order, losses[order])


def allocate(
    losses: Sequence[Tensor],
    steps: Sequence[int],
    cost: Callable[[Sequence[int]], float],
    target: float,
) -> list[int]:
    """How many channels each group loses: the least loss for each bit of cost saved comes first.

    Args:
        losses: For each group the `Removal.losses` of all channels that it may lose.
        steps: Channels that each group loses at a time.
        cost: Of the model, by the channels that each group has lost.
        target: Cost to come down to.
    Raises:
        NotApplicableError: The cost stays above the target with all of them removed.
    """
    curves = [torch.cat([loss.new_zeros(1), loss.cumsum(0)]).tolist() for loss in losses]
    removed = [0] * len(losses)
    now = cost(removed)
    while now > target:
        ratios = {}
        for i, (curve, step) in enumerate(zip(curves, steps, strict=True)):
            if removed[i] + step < len(curve):
                next_one = [*removed[:i], removed[i] + step, *removed[i + 1 :]]
                lost = curve[next_one[i]] - curve[removed[i]]
                ratios[i] = (now - cost(next_one)) / max(lost, 1e-30)
        if not ratios:
            raise NotApplicableError(
                f"with every group as narrow as allowed {now / cost([0] * len(losses)):.2f} of "
                "the multiply-adds are left: prune a smaller fraction"
            )
        best = max(ratios, key=lambda i: ratios[i])
        removed[best] += steps[best]
        now = cost(removed)
    return removed


class _Sweep:
    """A reader while channels go: its weight adjusted, and the inverse of the moment of the rest.

    A removed channel's block of the inverse is the identity, and its weight zero: it costs nothing
    more and moves nothing. Only the inverse's blocks on the diagonal are kept up to date; the rest
    waits for `WAITING` removals, as one large product takes far less time than many thin ones.
    """

    def __init__(self, reader: Reader, damping: float):
        self._columns = reader.columns
        self._weight = reader.weight.float().clone()
        self._diagonal = reader.moment.float() if reader.moment.dim() == 1 else None
        if self._diagonal is None:
            lower = damped_cholesky(reader.moment.double(), damping)
            self._inverse = torch.cholesky_inverse(lower).float()
            self._blocks = self._blocks_of(self._inverse)
            self._rows: list[Tensor] = []  # the inverse lacks - rows^T @ step of each
            self._steps: list[Tensor] = []
            energy = ((self._weight @ reader.moment.float()) * self._weight).sum()
        else:
            energy = (self._weight.square() * self._diagonal).sum()
        self._energy = energy.clamp(min=1e-30)

    def losses(self) -> Tensor:
        """(channels,) relative loss of each channel."""
        if self._diagonal is not None:
            energy = self._weight.square().sum(0) * self._diagonal
            return energy[self._columns].sum(1) / self._energy
        weights = self._weight[:, self._columns].permute(1, 2, 0)  # (channels, span, out)
        lost: Tensor = (weights * torch.linalg.solve(self._blocks, weights)).sum((1, 2))
        return lost / self._energy

    def remove(self, channel: int) -> None:
        """Remove one; columns that are left take over what they can."""
        own = self._columns[channel]
        if self._diagonal is None:
            rows = self._rows_of(own)
            step = torch.linalg.solve(rows[:, own], rows)
            self._weight.addmm_(self._weight[:, own], step, alpha=-1)
            at = self._columns
            self._blocks.baddbmm_(
                rows[:, at].permute(1, 2, 0), step[:, at].permute(1, 0, 2), alpha=-1
            )
            self._blocks[channel] = torch.eye(len(own), dtype=torch.float32)
            self._rows.append(rows)
            self._steps.append(step)
            if len(self._rows) == WAITING:
                self._catch_up()
        self._weight[:, own] = 0.0

    def _rows_of(self, columns: Tensor) -> Tensor:
        """Rows of the inverse as they are now, (span, in), of columns that aren't removed."""
        rows = self._inverse[columns]
        if self._rows:
            waiting = torch.cat(self._rows)
            rows -= waiting[:, columns].t() @ torch.cat(self._steps)
        return rows

    def _catch_up(self) -> None:
        # A removed channel's rows become zero by the product: they are never read again.
        self._inverse.addmm_(torch.cat(self._rows).t(), torch.cat(self._steps), alpha=-1)
        self._rows, self._steps = [], []

    def _blocks_of(self, inverse: Tensor) -> Tensor:
        """(channels, span, span)."""
        return inverse[self._columns[:, :, None], self._columns[:, None, :]]
