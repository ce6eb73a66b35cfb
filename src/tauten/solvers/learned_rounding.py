"""Learn for each weight whether it is rounded up or down, so that a layer's outputs stay."""

import torch
from torch import Tensor

from tauten.core.errors import NotApplicableError
from tauten.formats.integer import grid_values, round_to_grid
from tauten.solvers.second_order import output_error

STRETCH = 1.2  # of the sigmoid beyond 0 and 1 on both sides, so that it reaches them
FIRST_POWER, LAST_POWER = 20.0, 2.0  # of the regularizer, from gentle to strict
FREE_SHARE = 0.2  # of the iterations run without it
STRENGTH = 0.5
MOST_SWEEPS = 10
LEARNING_RATE = 0.05


def learned_codes(
    weight: Tensor,
    moment: Tensor,
    grid: tuple[int, int, Tensor, Tensor | None],
    iterations: int,
) -> Tensor:
    """Choose between the two levels around each weight.

    With d the change of a row, the loss is d H d^T / n for inputs of second moment H, n what it
    would be for inputs without correlation and a change of one step each; plus the regularizer
    sum(1 - |2h - 1|^p), which ends with each h at 0 (down) or 1 (up). Then single weights change
    sides as long as that lowers the loss; rows on which the nearest levels do better keep them.

    Args:
        weight: (out, in) floating.
        moment: (in, in), mean of x x^T.
        grid: Bits, group size, scale and zero, as `formats.integer.round_to_grid` takes them.
        iterations: Steps of Adam.
    Returns:
        (out, in) uint8 codes.
    Raises:
        NotApplicableError: The moment is zero or not finite.
    Cost: O(iterations * out * in^2) time, ten (out, in) buffers.
    Source: Nagel et al. 2020, arXiv:2004.10568, eqs. 21 to 25. There the loss is sampled from
    outputs; here it is exact over all calibration tokens, by their moment. The change of single
    weights at the end isn't in the paper.
    """
    mean = float(moment.diagonal().mean())
    if not 0 < mean < float("inf"):
        raise NotApplicableError("the layer's inputs are all zero or not finite")
    bits, group_size, scale, zero = grid
    size, weight = group_size or weight.shape[1], weight.float()
    nearest = round_to_grid(weight, bits, group_size, scale, zero)

    def values(codes: Tensor) -> Tensor:
        return grid_values(codes.float(), bits, size, scale, zero)

    lower = (nearest.int() - (values(nearest) > weight).int()).clamp_min(0)
    upper = (lower + 1).clamp_max(2**bits - 1)
    floor, span = values(lower), values(upper) - values(lower)
    share = (weight - floor) / torch.where(span > 0, span, 1)
    up = _learned_share(share, span, moment / mean, iterations) > 0.5
    up = _without_better_flip(up, share, span, moment)
    codes = torch.where(up, upper, lower).to(torch.uint8)
    errors = [output_error(values(found) - weight, moment) for found in (codes, nearest)]
    return torch.where((errors[0] < errors[1])[:, None], codes, nearest)


def _learned_share(share: Tensor, span: Tensor, moment: Tensor, iterations: int) -> Tensor:
    """(out, in) how far up each weight goes from its lower level, near 0 or 1.

    Args:
        share: (out, in) how far up it stands.
        span: (out, in) from the lower to the upper level.
        moment: (in, in) of mean diagonal 1.
        iterations: As in `learned_codes`.
    """
    start = (share.clamp(0.01, 0.99) + (STRETCH - 1) / 2) / STRETCH
    variable = torch.nn.Parameter(start.logit())
    optimizer = torch.optim.Adam([variable], LEARNING_RATE)
    unit = span.square().mean(1, keepdim=True).clamp_min(torch.finfo(span.dtype).tiny)
    free = round(FREE_SHARE * iterations)
    for step in range(iterations):
        sigmoid = variable.detach().sigmoid()
        stretched = sigmoid * STRETCH - (STRETCH - 1) / 2
        going = stretched.clamp(0, 1)
        slope = ((going - share) * span) @ moment * span * 2 / unit
        if step >= free:
            progress = (step - free) / max(1, iterations - free - 1)
            power = FIRST_POWER + (LAST_POWER - FIRST_POWER) * progress
            side = 2 * going - 1
            slope -= STRENGTH * 2 * power * side.abs().pow(power - 1) * side.sign()
        inside = (stretched > 0) & (stretched < 1)
        variable.grad = slope * inside * STRETCH * sigmoid * (1 - sigmoid)
        optimizer.step()
    return (variable.detach().sigmoid() * STRETCH - (STRETCH - 1) / 2).clamp(0, 1)


def _without_better_flip(up: Tensor, share: Tensor, span: Tensor, moment: Tensor) -> Tensor:
    """Move single weights to their other level while that lowers the loss; shapes as above."""
    up = up.clone()
    slope = ((up.float() - share) * span) @ moment  # half the gradient of the loss
    for _ in range(MOST_SWEEPS):
        before = up.clone()
        for column in range(up.shape[1]):
            step = torch.where(up[:, column], -span[:, column], span[:, column])
            better = step * (2 * slope[:, column] + step * moment[column, column]) < 0
            up[:, column] ^= better
            slope.addr_(step * better, moment[column])
        if up.equal(before):
            break
    return up
