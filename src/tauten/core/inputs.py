"""What a technique may know of the inputs that a layer sees."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class LayerInputs:
    """Second moments of a layer's inputs x over calibration tokens.

    For a convolution x is a patch, flattened like the weight.

    Attributes:
        moment: (in, in) float32, mean of x x^T.
        tokens: How many x were seen.
        shift: (in, in) float32, mean of (x of the original model - x) x^T: how far the layers
            before have moved the inputs; None where that wasn't gathered.
        mean: (in,) float32, mean of x.
        magnitudes: (32768,) int64, how many values of the input have |x| nearest to each number
            of bfloat16, at the place of its bits; None where that wasn't gathered.
    """

    moment: Tensor
    tokens: int
    shift: Tensor | None = None
    mean: Tensor | None = None
    magnitudes: Tensor | None = None
