"""Which level each unit of a model takes, so that least is lost within a budget."""

import torch
from torch import Tensor

from tauten.core.errors import NotApplicableError

_HALVINGS = 60  # of the interval that the price lies in


def allocate(costs: Tensor, losses: Tensor, budget: int) -> Tensor:
    """Choose one level for each unit: least total loss with a total cost within the budget.

    At a price for each bit of cost every unit takes the level of least loss and price paid; the
    price is the least that the budget allows. That leaves a little of the budget: it goes to
    single units, best use first, and to pairs of which one gives what the other takes.

    Args:
        costs: (units, levels) int64, such as bytes or kept weights.
        losses: (units, levels) floating; infinite where a unit has no such level.
        budget: Most total cost; never exceeded.
    Returns:
        (units,) int64, a level of each unit. Nothing better comes of changing one or two units.
    Raises:
        NotApplicableError: Even the cheapest levels cost more than the budget.
    Cost: O(units * levels) memory, a multiple of `units` times that for the pairs.
    Source: Everett 1963, "Generalized Lagrange multiplier method", and a local search after it.
    """
    losses = losses.double()
    allowed = losses.isfinite()
    cheapest = torch.where(allowed, costs, torch.iinfo(torch.int64).max).argmin(1)
    least = int(_taken(costs, cheapest).sum())
    if not bool(allowed.any(1).all()) or least > budget:
        raise NotApplicableError(f"the cheapest levels cost {least}, above the budget of {budget}")
    chosen = _at_price(costs, losses, 0.0)
    if _taken(costs, chosen).sum() > budget:
        chosen = _at_least_price(costs, losses, budget, cheapest)
    return _improved(costs, losses, budget, chosen)


def _at_least_price(costs: Tensor, losses: Tensor, budget: int, cheapest: Tensor) -> Tensor:
    """The levels at the least price that keeps to the budget."""
    spread = losses.masked_fill(~losses.isfinite(), 0.0)
    low, high = 0.0, float(spread.amax() - spread.amin()) + 1e-30  # each unit of cost is dearer
    best = cheapest
    for _ in range(_HALVINGS):
        # Prices differ by powers: a geometric middle, down to a millionth of a millionth of high.
        price = (max(low, 1e-12 * high) * high) ** 0.5
        chosen = _at_price(costs, losses, price)
        if _taken(costs, chosen).sum() > budget:
            low = price
        else:
            high, best = price, chosen
    return best


def _at_price(costs: Tensor, losses: Tensor, price: float) -> Tensor:
    return (losses + price * costs).argmin(1)


def _taken(table: Tensor, chosen: Tensor) -> Tensor:
    """(units,) the entries of a table at the levels chosen."""
    return table.gather(1, chosen[:, None])[:, 0]


def _improved(costs: Tensor, losses: Tensor, budget: int, chosen: Tensor) -> Tensor:
    """Change one unit's level, or two units', while that loses less within the budget."""
    chosen, levels = chosen.clone(), costs.shape[1]
    while True:
        slack = budget - int(_taken(costs, chosen).sum())
        dearer = (costs - _taken(costs, chosen)[:, None]).flatten()
        gained = (_taken(losses, chosen)[:, None] - losses).flatten()
        gain = torch.where((dearer <= slack) & (gained > 0), gained, 0.0)
        if bool(gain.any()):
            best = int((gain / dearer.clamp(min=1)).argmax())
            chosen[best // levels] = best % levels
            continue
        found = _best_pair(dearer, gained, slack, levels)
        if found is None:
            return chosen
        for move in found:
            chosen[move // levels] = move % levels


def _best_pair(dearer: Tensor, gained: Tensor, slack: int, levels: int) -> tuple[int, int] | None:
    """Two moves, one that gains and one that pays for it, which together gain most."""
    wanted = (gained > 0).nonzero()[:, 0]
    paying = ((dearer < 0) & gained.isfinite()).nonzero()[:, 0]
    best, found = 0.0, None
    for move in wanted.tolist():
        fits = (dearer[move] + dearer[paying] <= slack) & (paying // levels != move // levels)
        total = torch.where(fits, gained[move] + gained[paying], 0.0)
        if len(total) and float(total.max()) > best:
            best, found = float(total.max()), (move, int(paying[total.argmax()]))
    return found
