"""Packed layers: drop-in for torch's, with the weight held in fewer bits."""

from typing import Any

import torch
from torch import Tensor, nn

from tauten.formats.packed import PackedWeight, shard_range
from tauten.runtime import kernels


class PackedModule(nn.Module):
    """What packed layers share: the packed weight, an optional bias, and what activations do.

    `weight` gives the dequantized weight, for model code that reads its dtype or multiplies by it.

    Args:
        packed: The weight; a tied weight is the same object in several layers.
        bias: As in the layer it replaces.
        activation: `float`, `int8` or `static`, as for `kernels.linear`.
        dtype: That of the weight it replaced.
        settings: What else a convolution needs: stride, padding, ...
        step: () float32, of `static` activations.
    """

    def __init__(
        self,
        packed: PackedWeight,
        bias: Tensor | None = None,
        activation: str = "float",
        dtype: torch.dtype = torch.float32,
        settings: dict[str, Any] | None = None,
        step: Tensor | None = None,
    ):
        super().__init__()
        self.packed = packed
        self.activation = activation
        self.settings = settings or {}
        self.bias = bias if bias is None or isinstance(bias, nn.Parameter) else nn.Parameter(bias)
        self.register_buffer("step", step)
        self.step: Tensor | None
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
        return kernels.linear(x, self.packed, self.bias, self.activation, self.step)

    def shard(self, rank: int, world: int, dim: int, unit: int = 1) -> "PackedLinear":
        """One worker's part of the layer, which it computes alone.

        By rows (dim 0) the outputs of all workers, one after the other, are those of the layer.
        By columns (dim 1) each worker takes its columns of x, and the outputs add up to those of
        the layer; worker 0 holds the bias. With int8 activations and one group a row, each worker
        then rounds its columns of a token by themselves.

        Args:
            rank: Of the worker, from 0 on.
            world: How many workers there are.
            dim: 0 for rows of out, 1 for columns of in.
            unit: Rows or columns that stay together, such as a head or a group; the first workers
                get one more where they don't deal out evenly.
        Raises:
            InputError: A worker would get nothing, or a group of columns would be cut.
            NotApplicableError: This kind of weight can't be cut there.
        """
        packed = self.packed.shard(rank, world, dim, unit)
        bias = self.bias if dim == 0 or rank == 0 else None
        if bias is not None and dim == 0:
            begin, end = shard_range(self.out_features, rank, world, unit)
            bias = nn.Parameter(bias.detach()[begin:end].clone(), bias.requires_grad)
        return PackedLinear(packed, bias, self.activation, self.dtype_like.dtype, step=self.step)


class PackedConv(PackedModule):
    """1-D to 3-D convolution; `settings` holds stride, padding, dilation, groups, padding_mode."""

    def forward(self, x: Tensor) -> Tensor:
        """(batch, in, *size) or (in, *size) floating -> (batch, out, *size), same dtype."""
        return kernels.conv(x, self.packed, self.bias, self.activation, self.settings, self.step)


class PackedEmbedding(PackedModule):
    """Rows of a packed table, dequantized as they are looked up."""

    def forward(self, index: Tensor) -> Tensor:
        """(...) integer -> (..., features)."""
        return kernels.rows(index, self.packed, self.dtype_like.dtype)
