"""What a technique may know of the inputs that a layer sees."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

# The inverse of a second moment of fewer tokens is mostly chance: with n tokens and d features
# eigenvalues of white inputs spread by ((1 + r) / (1 - r))^2, r = sqrt(d / n) (Marchenko-Pastur):
# 4.4 at 8 tokens a feature, 34 at 2, and no inverse at all below 1.
TOKENS_PER_FEATURE = 8


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

    @property
    def suffices(self) -> bool:
        """Whether there are tokens enough for the inverse of the moment to mean something."""
        return self.tokens >= TOKENS_PER_FEATURE * len(self.moment)

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


@dataclass(frozen=True)
class BlockExamples:
    """Calibration batches as a block gets them, and what it ought to make of them.

    Inputs are what packed blocks made; targets what the original block makes in the original
    model, so that a block is also fitted to make up for those before it.

    Attributes:
        run: From a float32 block and the number of a batch to the block's output on it, (rows,
            length, features) in a language model; with gradients where the block has them.
        targets: The original's output on each batch, floating.
        masks: Of each batch (rows, length) bool, False at padding; None where all count.
        held_out: So many batches at the end aren't for fitting but to choose among fits.
    """

    run: Callable[[nn.Module, int], Tensor]
    targets: Sequence[Tensor]
    masks: Sequence[Tensor | None]
    held_out: int
