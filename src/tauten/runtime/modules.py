"""Packed layers: drop-in for torch's, with the weight held in fewer bits."""

from typing import Any

import torch
from torch import Tensor, nn

from tauten.formats.packed import PackedWeight
from tauten.runtime import kernels


class PackedModule(nn.Module):
    """What packed layers share: the packed weight, an optional bias, and what activations do.

    `weight` gives the dequantized weight, for model code that reads its dtype or multiplies by it.

    Args:
        packed: The weight; a tied weight is the same object in several layers.
        bias: As in the layer it replaces.
        activation: `float` or `int8`.
        dtype: That of the weight it replaced.
        settings: What else a convolution needs: stride, padding, ...
    """

    def __init__(
        self,
        packed: PackedWeight,
        bias: Tensor | None = None,
        activation: str = "float",
        dtype: torch.dtype = torch.float32,
        settings: dict[str, Any] | None = None,
    ):
        super().__init__()
        self.packed = packed
        self.activation = activation
        self.settings = settings or {}
        self.bias = bias if bias is None or isinstance(bias, nn.Parameter) else nn.Parameter(bias)
        # Empty, so that `.to(dtype)` on the model is seen by layers without a floating parameter.
        self.register_buffer("dtype_like", torch.empty(0, dtype=dtype), persistent=False)
        self.dtype_like: Tensor

    @property
    def weight(self) -> Tensor:
        """The weight it stands for, dequantized anew on each access."""
        return self.packed.dequantize(self.dtype_like.dtype)

    def extra_repr(self) -> str:
        shape = "x".join(map(str, self.packed.shape))
        bits = f"{self.packed.bits_per_weight:.2f} bits a weight"
        return f"{shape}, {self.packed.kind}, {bits}, activation={self.activation}"


class PackedLinear(PackedModule):
    """y = x W^T + b."""

    @property
    def in_features(self) -> int:
        """Columns of the weight."""
        return self.packed.in_features

    @property
    def out_features(self) -> int:
        """Rows of the weight."""
        return self.packed.out_features

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) floating -> (..., out), same dtype."""
        return kernels.linear(x, self.packed, self.bias, self.activation)


class PackedConv(PackedModule):
    """1-D or 2-D convolution; `settings` holds stride, padding, dilation, groups, padding_mode."""

    def forward(self, x: Tensor) -> Tensor:
        """(batch, in, *size) floating -> (batch, out, *size)."""
        options, padding = self.settings, self.settings["padding"]
        if options["padding_mode"] != "zeros":
            x = nn.functional.pad(x, options["pad_edges"], mode=options["padding_mode"])
            padding = [0] * len(options["stride"])
        convolve = nn.functional.conv1d if len(self.packed.shape) == 3 else nn.functional.conv2d
        weight = self.packed.dequantize(x.dtype)
        stride, dilation, groups = options["stride"], options["dilation"], options["groups"]
        return convolve(x, weight, self.bias, stride, padding, dilation, groups)


class PackedEmbedding(PackedModule):
    """Rows of a packed table, dequantized as they are looked up."""

    def forward(self, index: Tensor) -> Tensor:
        """(...) integer -> (..., features)."""
        return kernels.rows(index, self.packed, self.dtype_like.dtype)
