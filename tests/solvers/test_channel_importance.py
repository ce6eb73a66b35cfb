"""The order of removal against brute force over all choices."""

from collections.abc import Sequence
from itertools import combinations

import pytest
import torch
from torch import Tensor

from tauten.core.errors import NotApplicableError
from tauten.solvers.channel_importance import (
    WAITING,
    Reader,
    allocate,
    independent_losses,
    removal_order,
)
from tauten.solvers.compensation import compensated
from tauten.solvers.second_order import damped, output_error

SPAN = 2
COLUMNS = torch.arange(12).view(6, SPAN)


def readers(seed: int) -> list[Reader]:
    generator = torch.Generator().manual_seed(seed)
    made = []
    for out in (3, 5):
        x = torch.randn(50, 12, generator=generator) @ torch.randn(12, 12, generator=generator)
        moment = damped(x.t() @ x / 50, 0.01)
        made.append(Reader(torch.randn(out, 12, generator=generator), moment, COLUMNS))
    return made


def loss_without(made: list[Reader], removed: list[int]) -> float:
    """Relative loss after the best change of all other columns."""
    kept = torch.ones(12, dtype=torch.bool)
    kept[COLUMNS[removed].flatten()] = False
    total = 0.0
    for reader in made:
        change = compensated(reader.weight, reader.moment, kept, 1e-12) - reader.weight
        lost = output_error(change, reader.moment).sum()
        total += float(lost / output_error(reader.weight, reader.moment).sum())
    return total


def test_each_step_removes_what_brute_force_would() -> None:
    for seed in range(5):
        made = readers(seed)
        removed: list[int] = []
        for channel in removal_order(made, 3, damping=1e-9).order.tolist():
            left = [c for c in range(6) if c not in removed]
            assert channel == min(left, key=lambda c, r=removed: loss_without(made, [*r, c]))
            removed.append(channel)


def test_losses_add_up_to_what_is_lost_over_many_removals() -> None:
    channels, span, generator = 60, 2, torch.manual_seed(0)
    x = torch.randn(400, channels * span, generator=generator, dtype=torch.float64)
    x[:, ::2] += 0.5 * x[:, 1::2]
    moment = x.t() @ x / 400
    weight = torch.randn(7, channels * span, generator=generator, dtype=torch.float64)
    columns = torch.arange(channels * span).view(channels, span)
    found = removal_order([Reader(weight, moment, columns)], 45, damping=1e-9)
    assert len(set(found.order.tolist())) == 45 > WAITING
    for count in (1, WAITING, WAITING + 1, 45):
        kept = torch.ones(channels * span, dtype=torch.bool)
        kept[columns[found.order[:count]].flatten()] = False
        change = compensated(weight, moment, kept, 1e-9) - weight
        lost = output_error(change, moment).sum() / output_error(weight, moment).sum()
        torch.testing.assert_close(
            float(found.losses[:count].sum()), float(lost), rtol=1e-3, atol=0
        )


def test_beats_independent_losses_on_the_compensated_loss() -> None:
    wins = []
    for seed in range(10):
        made = readers(seed)
        greedy = loss_without(made, removal_order(made, 3, damping=1e-9).order.tolist())
        alone = loss_without(made, independent_losses(made).argsort()[:3].tolist())
        best = min(loss_without(made, list(c)) for c in combinations(range(6), 3))
        assert best <= greedy * (1 + 1e-6)
        wins.append(greedy <= alone * (1 + 1e-6))
    assert sum(wins) >= 9


def test_of_equal_channels_one_stays() -> None:
    x = torch.randn(100, 4, generator=torch.manual_seed(0))
    x[:, 2] = x[:, 0]
    weight = torch.eye(4) * torch.tensor([0.9, 1.0, 0.9, 1.0])[:, None]
    reader = Reader(weight, x.t() @ x / 100, torch.arange(4)[:, None])
    assert independent_losses([reader]).argsort()[:2].sort().values.tolist() == [0, 2]
    order = removal_order([reader], 2, damping=1e-5).order.tolist()
    assert len({0, 2} & set(order)) == 1


def test_each_part_loses_the_same() -> None:
    diagonal = torch.arange(1.0, 13.0)
    made = [Reader(torch.ones(3, 12), diagonal, COLUMNS), readers(0)[0]]
    order = removal_order(made, 4, parts=2).order
    assert sorted((order // 3).tolist()) == [0, 0, 1, 1]


def test_independent_losses_are_shares_of_the_output() -> None:
    diagonal = torch.tensor([4.0, 1.0, 1.0, 2.0])
    weight: Tensor = torch.tensor([[1.0, 2.0, 0.0, 1.0]])
    losses = independent_losses([Reader(weight, diagonal, torch.arange(4).view(2, 2))])
    torch.testing.assert_close(losses, torch.tensor([8.0, 2.0]) / 10)


def test_allocation_takes_what_loses_least_for_what_it_saves() -> None:
    losses = [torch.tensor([1.0, 1.0, 9.0, 9.0]), torch.tensor([4.0, 4.0, 4.0, 4.0])]

    def cost(removed: Sequence[int]) -> float:
        return (6 - removed[0]) * (6 - removed[1])

    assert allocate(losses, [2, 1], cost, 24) == [2, 0]
    assert allocate(losses, [2, 1], cost, 12) == [2, 3]
    assert allocate(losses, [2, 1], cost, 36) == [0, 0]
    with pytest.raises(NotApplicableError, match=r"0\.11 of the multiply-adds are left"):
        allocate(losses, [2, 1], cost, 3)
