"""How sure a drop is: paired, by independent example."""

import math

from scipy import special
from torch import Tensor

from tauten.core.measurement import Drop

CONFIDENCE = 0.95


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
    original: Tensor, candidate: Tensor, weight: Tensor, confidence: float = CONFIDENCE
) -> Drop:
    """Relative rise of exp(mean loss), as of perplexity.

    Args:
        original: (n,) loss of each example, summed over its tokens.
        candidate: (n,) the same for the candidate.
        weight: (n,) tokens of each example.
        confidence: Of each end on its own.
    """
    low_mid_high = ratio_interval(candidate.double() - original.double(), weight, confidence)
    value, low, high = (_expm1(x) for x in low_mid_high)
    return Drop(value, low, high, original.numel(), confidence)


def linear_drop(
    original: Tensor,
    candidate: Tensor,
    weight: Tensor,
    higher_is_better: bool,
    confidence: float = CONFIDENCE,
) -> Drop:
    """Relative loss of a mean score: a share of the size of the original's.

    Args:
        original: (n,) score of each example, summed over what it holds.
        candidate: (n,) the same for the candidate.
        weight: (n,) what each example holds; the mean is sum of scores over sum of weights.
        higher_is_better: Direction of the score.
        confidence: Of each end on its own.
    """
    sign = 1.0 if higher_is_better else -1.0
    lost = sign * (original.double() - candidate.double())
    total = float(original.double().sum())
    if not total:  # of nothing no share can be lost, whatever is lost
        value = float(lost.sum() / weight.double().sum())
        return Drop(value, -math.inf, math.inf, original.numel(), confidence)
    # A score below 0, such as a negated loss, loses a share of its size.
    base = original.double() * math.copysign(1.0, total)
    value, low, high = ratio_interval(lost, base, confidence)
    if _binary(original, weight) and _binary(candidate, weight):
        # With few disagreements the normal interval is too narrow: at zero it has no width.
        exact = _exact_loss_bound(lost, confidence) / float(base.sum())
        high = max(high, exact)
    return Drop(value, low, high, original.numel(), confidence)


def _exact_loss_bound(lost: Tensor, confidence: float) -> float:
    """Upper bound of the examples lost, were none gained: Clopper and Pearson 1934."""
    n, losses = lost.numel(), int((lost > 0).sum())
    gains = int((lost < 0).sum())
    rate = 1.0 if losses >= n else float(special.betaincinv(losses + 1, n - losses, confidence))
    return n * rate - gains


def _binary(score: Tensor, weight: Tensor) -> bool:
    return bool((weight == 1).all()) and bool(((score == 0) | (score == 1)).all())


def _expm1(x: float) -> float:
    return math.expm1(x) if x < 700 else math.inf
