"""The largest activation that a fixed 8-bit step still represents, from counts of magnitudes."""

import torch
from torch import Tensor

from tauten.core.errors import NotApplicableError

OBSERVERS = ("percentile", "mse", "minmax")
LEVELS = 127
CANDIDATES = 128  # clips that `mse` tries, evenly spaced up to the largest value


def fixed_step(magnitudes: Tensor, observer: str, percentile: float = 1.0) -> Tensor:
    """Choose the step of symmetric 8-bit activations.

    Args:
        magnitudes: (32768,) counts of |x| by its bits in bfloat16, as `LayerInputs.magnitudes`.
        observer: `minmax` represents every value, `percentile` the given share of them, `mse` as
            many as make the squared error of rounding and clipping least.
        percentile: More than 0, at most 1.
    Returns:
        () float32.
    Raises:
        NotApplicableError: All values are zero, or some aren't finite.
    """
    values = magnitude_values()
    seen = magnitudes > 0
    counts, values = magnitudes[seen].double(), values[seen].double()
    if not len(values) or not bool(values.isfinite().all()) or values[-1] == 0:
        raise NotApplicableError("the layer's inputs are all zero or not finite")
    clip = values[-1]
    if observer == "percentile":
        share = counts.cumsum(0) / counts.sum()
        inside = values[int((share < percentile).sum().clamp(max=len(values) - 1))]
        clip = inside if inside > 0 else clip  # nearly all are zero: the rest decides
    elif observer == "mse":
        clips = clip * torch.arange(1, CANDIDATES + 1, dtype=torch.float64) / CANDIDATES
        errors = torch.stack([_squared_error(values, counts, c) for c in clips])
        clip = clips[errors.argmin()]
    return (clip / LEVELS).float()


def magnitude_values() -> Tensor:
    """(32768,) float32, the number that each place of `LayerInputs.magnitudes` counts."""
    return torch.arange(2**15, dtype=torch.int16).view(torch.bfloat16).float()


def _squared_error(values: Tensor, counts: Tensor, clip: Tensor) -> Tensor:
    """Of rounding to steps of clip / LEVELS.

    A counted value stands for an interval that may be as wide as a step, so what is rounded counts
    with the mean error of its step; what becomes zero or is clipped, with its own.
    """
    step = clip / LEVELS
    error = torch.where(values < step / 2, values.square(), step.square() / 12)
    error = torch.where(values > clip, (values - clip).square(), error)
    return (error * counts).sum()
