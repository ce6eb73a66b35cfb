"""Allocation against brute force over all choices."""

from itertools import product

import pytest
import torch
from torch import Tensor

from tauten.core.errors import NotApplicableError
from tauten.solvers.allocation import allocate


def tables(seed: int, convex: bool) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    costs = torch.randint(1, 40, (5, 4), generator=generator).cumsum(1)
    losses = torch.rand(5, 4, generator=generator, dtype=torch.float64)
    if convex:
        losses = losses.sort(1).values.cumsum(1)
    return costs, losses.flip(1) if convex else losses


def total(table: Tensor, chosen: Tensor | tuple[int, ...]) -> float:
    return sum(float(row[level]) for row, level in zip(table, chosen, strict=True))


@pytest.mark.parametrize("convex", [True, False])
def test_nearly_as_good_as_brute_force_and_never_above_the_budget(convex: bool) -> None:
    exact = 0
    for seed in range(20):
        costs, losses = tables(seed, convex)
        budget = int(costs.float().mean(1).sum())
        every = [c for c in product(range(4), repeat=5) if total(costs, c) <= budget]
        best = min(total(losses, c) for c in every)
        chosen = allocate(costs, losses, budget)
        assert total(costs, chosen) <= budget
        assert total(losses, chosen) <= 1.1 * best + 1e-12
        exact += total(losses, chosen) <= best + 1e-12
    assert exact >= 16


def test_a_budget_for_everything_buys_everything() -> None:
    costs, losses = tables(0, convex=True)
    assert allocate(costs, losses, int(costs[:, -1].sum())).tolist() == [3] * 5


def test_slack_is_used_up_by_what_still_fits() -> None:
    # No price gives one of the equal units more than the other: the rest is filled in after.
    costs, losses = torch.tensor([[0, 10], [0, 10]]), torch.tensor([[5.0, 1.0], [5.0, 1.0]])
    assert sorted(allocate(costs, losses, 10).tolist()) == [0, 1]
    assert allocate(costs, losses, 9).tolist() == [0, 0]


def test_two_units_change_places_where_neither_alone_can() -> None:
    # The first is the better use of what it costs, the second of all there is.
    costs, losses = torch.tensor([[0, 7], [0, 8]]), torch.tensor([[7.0, 0.0], [7.5, 0.0]])
    assert allocate(costs, losses, 7).tolist() == [1, 0]
    assert allocate(costs, losses, 8).tolist() == [0, 1]


def test_levels_that_a_unit_lacks_are_never_taken() -> None:
    costs = torch.tensor([[0, 1, 2], [0, 4, 8]])
    losses = torch.tensor([[torch.inf, 1.0, torch.inf], [9.0, 3.0, torch.inf]])
    assert allocate(costs, losses, 100).tolist() == [1, 1]
    assert allocate(costs, losses, 1).tolist() == [1, 0]
    with pytest.raises(NotApplicableError, match="cheapest levels cost 1, above the budget of 0"):
        allocate(costs, losses, 0)


def test_tiny_losses_are_told_apart() -> None:
    costs, losses = tables(1, convex=True)
    budget = int(costs.float().mean(1).sum())
    small = allocate(costs, 1e-9 * losses, budget)
    assert torch.equal(small, allocate(costs, losses, budget))
