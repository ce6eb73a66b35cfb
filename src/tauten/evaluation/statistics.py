"""How sure a drop is: paired, by independent example."""

import math

import torch
from scipy import special
from torch import Tensor

from tauten.core.measurement import Drop

CONFIDENCE = 0.95
FEWEST_UNITS = 8  # of fewer the spread is known too little for any certificate
ALIKE = 0.5  # from this share of examples on that score alike, those that differ are few


def ratio_interval(
    numerator: Tensor, denominator: Tensor, confidence: float = CONFIDENCE
) -> tuple[float, float, float]:
    """Ratio of sums with an interval whose ends are each one-sided bounds.

    The variance is that of a ratio estimator over independent clusters (Cochran 1977, Sampling
    Techniques, eq. 6.13), with Student's t on n - 1 degrees of freedom.

    Args:
        numerator: (n,), one value an independent example.
        denominator: (n,), positive in sum.
        confidence: Of each end on its own.
    Returns:
        Ratio, lower and upper end; with fewer than two examples the ends are infinite.
    """
    n = numerator.numel()
    top, bottom = numerator.double(), denominator.double()
    ratio = float(top.sum() / bottom.sum())
    if n < 2:
        return ratio, -math.inf, math.inf
    residual = top - ratio * bottom
    variance = n / (n - 1) * float(residual.square().sum()) / float(bottom.sum()) ** 2
    reach = float(special.stdtrit(n - 1, confidence)) * math.sqrt(variance)
    return ratio, ratio - reach, ratio + reach


def shared_confidence(looks: int) -> float:
    """Confidence of each of several bounds with which all of them hold: Bonferroni's correction."""
    return 1 - (1 - CONFIDENCE) / looks


def more_examples(drop: Drop, limit: float) -> int | None:
    """How many more examples it takes until a drop's bound is within a limit, if all stays alike.

    The distance from the estimate to its bound is taken to fall with the root of their number.

    Returns:
        0 where the bound is within the limit; None where the estimate itself isn't below it, so
        that no number is enough, or where a single example tells nothing of the spread.
    """
    if drop.high <= limit:
        return 0
    if drop.value >= limit or math.isinf(drop.high):
        return None
    reach = (drop.high - drop.value) / (limit - drop.value)
    return math.ceil(drop.examples * reach**2) - drop.examples


def log_drop(
    original: Tensor,
    candidate: Tensor,
    weight: Tensor,
    confidence: float = CONFIDENCE,
    unit: str = "",
) -> Drop:
    """Rise of exp(mean loss), as of perplexity.

    Args:
        original: (n,) loss of each example, summed over its tokens.
        candidate: (n,) the same for the candidate.
        weight: (n,) tokens of each example.
        confidence: Of each end on its own.
        unit: As `Goal.drop_unit`.
    """
    if unit:  # by linearization: exp of each mean moves by itself times what its mean moves by
        held = weight.double()
        means = [float(t.double().sum() / held.sum()) for t in (original, candidate)]
        before, after = (_expm1(mean) + 1 for mean in means)
        moved = after * (candidate - means[1] * held) - before * (original - means[0] * held)
        interval = ratio_interval(moved + (after - before) * held, held, confidence)
    else:
        interval = ratio_interval(candidate.double() - original.double(), weight, confidence)
        interval = _expm1(interval[0]), _expm1(interval[1]), _expm1(interval[2])
    return _drop(interval, original.numel(), confidence, unit)


def linear_drop(
    original: Tensor,
    candidate: Tensor,
    weight: Tensor,
    higher_is_better: bool,
    confidence: float = CONFIDENCE,
    unit: str = "",
) -> Drop:
    """Loss of a mean score: a share of the size of the original's.

    Args:
        original: (n,) score of each example, summed over what it holds.
        candidate: (n,) the same for the candidate.
        weight: (n,) what each example holds; the mean is sum of scores over sum of weights.
        higher_is_better: Direction of the score.
        confidence: Of each end on its own.
        unit: As `Goal.drop_unit`; with one it is no share.
    """
    sign = 1.0 if higher_is_better else -1.0
    lost = sign * (original.double() - candidate.double())
    total = float(original.double().sum())
    if not total and not unit:  # of nothing no share can be lost, whatever is lost
        value = float(lost.sum() / weight.double().sum())
        return Drop(value, -math.inf, math.inf, original.numel(), confidence)
    # A score below 0, such as a negated loss, loses a share of its size.
    base = weight.double() if unit else original.double() * math.copysign(1.0, total)
    value, low, high = ratio_interval(lost, base, confidence)
    if float((lost == 0).double().mean()) >= ALIKE:
        # With few disagreements the normal interval is too narrow: at zero it has no width.
        # Of scores that are all 0, as no error is made, one may become an error.
        largest = float(torch.stack([original.abs(), candidate.abs()]).max()) or 1.0
        high = max(high, _rare_loss_bound(lost, largest, confidence) / float(base.sum()))
    return _drop((value, low, high), original.numel(), confidence, unit)


def _rare_loss_bound(lost: Tensor, largest: float, confidence: float) -> float:
    """Upper bound of what is lost where few examples lose.

    Their share is bounded by Clopper and Pearson 1934. What one of them loses is what those that
    were seen lose on average, with one more that loses as much as a score is large; of right and
    wrong answers that is 1, and the bound exact.
    """
    n, losses = lost.numel(), int((lost > 0).sum())
    rate = 1.0 if losses >= n else float(special.betaincinv(losses + 1, n - losses, confidence))
    size = (float(lost.clamp(min=0).sum()) + largest) / (losses + 1)
    return n * rate * size + float(lost.clamp(max=0).sum())


def _drop(
    interval: tuple[float, float, float], examples: int, confidence: float, unit: str
) -> Drop:
    scale = 100.0 if unit == "points" else 1.0
    value, low, high = (scale * end for end in interval)
    return Drop(value, low, high, examples, confidence, unit)


def _expm1(x: float) -> float:
    return math.expm1(x) if x < 700 else math.inf
