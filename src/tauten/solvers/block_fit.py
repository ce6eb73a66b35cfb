"""Fit a block to outputs by descent on batches, and keep what serves batches held out best."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from tauten.core.errors import InputError
from tauten.core.inputs import BlockExamples

CHECKS = 4  # of the batches held out, evenly spread over the steps
LEAST_ENERGY = 1e-3  # of the mean: an output that is next to nothing doesn't count for much


def output_distance(output: Tensor, target: Tensor, mask: Tensor | None) -> Tensor:
    """Mean over tokens of |output - target|^2 / |target|^2.

    Each token is measured by its own size, as the norm of the next block does: a few tokens of a
    language model are a thousand times larger than the others, and would be all that counts.

    Args:
        output: (rows, length, features), or (rows, ...) where each row counts as a token.
        target: Of the same shape.
        mask: (rows, length) bool, False at padding; None where all count.
    """
    dims = [-1] if output.dim() <= 3 else list(range(1, output.dim()))
    target = target.float()
    lost = (output.float() - target).square().sum(dims)
    energy = target.square().sum(dims)
    if mask is not None and mask.shape == lost.shape:
        lost, energy = lost[mask], energy[mask]
    return (lost / energy.clamp_min(LEAST_ENERGY * energy.mean())).mean()


def block_distance(block: nn.Module, examples: BlockExamples, index: int) -> Tensor:
    """`output_distance` of what a block makes of a batch, by its number."""
    output = examples.run(block, index)
    return output_distance(output, examples.targets[index], examples.masks[index])


@torch.no_grad()
def held_out_distance(block: nn.Module, examples: BlockExamples) -> float:
    """Mean distance of a block's outputs on the batches held out; 0 if there are none."""
    count = len(examples.targets)
    numbers = range(count - examples.held_out, count)
    return sum(float(block_distance(block, examples, i)) for i in numbers) / max(1, len(numbers))


def fit_block(
    block: nn.Module,
    examples: BlockExamples,
    parameters: Sequence[Tensor],
    update: Callable[[int], None],
    steps: int,
    seed: int,
) -> tuple[float, float]:
    """Change parameters in place; they end where the batches held out were served best.

    Args:
        block: Computes with the parameters.
        examples: Of the block. If none are held out, the last step counts.
        parameters: What is trained; where it starts is a candidate too.
        update: Makes a step along the gradients, given how many were made before.
        steps: Each on one batch.
        seed: Of the order of batches.
    Returns:
        Mean loss on the batches held out before and after; both 0 if there are none.
    Raises:
        InputError: The loss isn't finite at the start.
    """
    fitted = len(examples.targets) - examples.held_out
    order = shuffled_passes(fitted, -(-steps // fitted), seed)[:steps]
    start = least = held_out_distance(block, examples)
    if not math.isfinite(start):
        raise InputError("the outputs of a block aren't finite on the calibration data")
    best = [p.detach().clone() for p in parameters]
    for step, index in enumerate(order, 1):
        with torch.enable_grad():
            block_distance(block, examples, index).backward()
        update(step - 1)
        for parameter in parameters:
            parameter.grad = None
        if step == steps or step % max(1, steps // CHECKS) == 0:
            now = held_out_distance(block, examples)
            if now < least or not examples.held_out:
                least, best = now, [p.detach().clone() for p in parameters]
    with torch.no_grad():
        for parameter, value in zip(parameters, best, strict=True):
            parameter.copy_(value)
    return start, least


def shuffled_passes(count: int, passes: int, seed: int) -> list[int]:
    """The numbers below `count` in an order of chance, so many times."""
    generator = torch.Generator().manual_seed(seed)
    orders = [torch.randperm(count, generator=generator) for _ in range(passes)]
    order: list[int] = torch.cat(orders).tolist()
    return order
