"""What a technique may know of the inputs that a layer sees."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class LayerInputs:
    """Statistics of a layer's inputs x over calibration tokens.

    For a convolution x is a patch, flattened like the weight.

    Attributes:
        moment: (in, in) float32, mean of x x^T.
        tokens: How many x were seen.
        shift: (in, in) float32, mean of (x of the original model - x) x^T: how far the layers
            before have moved the inputs; None where that wasn't gathered.
        peak: (in,) float32, largest |x| of each column; None where it wasn't gathered.
        sample: (rows, in) float32, a few hundred x, spread evenly over the tokens; None as above.
        note: What the report says of them; empty where they are what the layer is given.
        mean: (in,) float32, mean of x.
        magnitudes: (32768,) int64, how many values of the input have |x| nearest to each number
            of bfloat16, at the place of its bits; None where that wasn't gathered.
    """

    moment: Tensor
    tokens: int
    shift: Tensor | None = None
    peak: Tensor | None = None
    sample: Tensor | None = None
    note: str = ""
    mean: Tensor | None = None
    magnitudes: Tensor | None = None

    def divided(self, scale: Tensor) -> "LayerInputs":
        """The statistics of x / scale without a second look at the data; magnitudes are left out.

        Args:
            scale: (in,) positive.
        """
        pairs = scale[:, None] * scale
        return LayerInputs(
            self.moment / pairs,
            self.tokens,
            None if self.shift is None else self.shift / pairs,
            None if self.peak is None else self.peak / scale,
            None if self.sample is None else self.sample / scale,
            self.note,
            None if self.mean is None else self.mean / scale,
        )
