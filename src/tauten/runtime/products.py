"""Calls of the native and GPU ops, one for each kind of packed weight, and their derivatives.

Nothing is decided here: `kernels` knows which op serves, and lays the weight out before.
"""

from typing import Any

import torch
from torch import Tensor

from tauten.formats.codebook import CodebookWeight
from tauten.formats.integer import IntegerWeight
from tauten.formats.packed import PackedWeight
from tauten.formats.sparse import SparseWeight
from tauten.runtime import book_ops, conv_op, ops, sparse_ops  # noqa: F401 (register)


def multiply(
    x: Tensor,
    weight: PackedWeight,
    bias: Tensor | None,
    activation: str,
    step: Tensor | None = None,
) -> Tensor:
    """x @ weight.T + bias as `kernels.linear` gives it, by the op for this kind of weight."""
    y: Tensor
    rows, product = weight.out_features, torch.ops.tauten
    if isinstance(weight, IntegerWeight):
        grid = (weight.codes, weight.scale, weight.zero)
        size = (weight.bits, weight.group_size, rows)
        y = product.integer_linear(x, *grid, bias, *size, activation != "float", step)
    elif isinstance(weight, SparseWeight):
        kept = (weight.mask, weight.starts, weight.values, weight.scale, weight.zero)
        meaning = (weight.grid.bits, weight.grid.group_size) if weight.grid else (0, 0)
        y = product.sparse_linear(x, *kept, bias, *meaning, weight.slots, rows)
    elif isinstance(weight, CodebookWeight) and activation == "int8":
        interleaved = weight.interleaved
        book = (weight.table, weight.step) if interleaved else weight.rounded_codebook()
        y = product.codebook_linear(x, weight.codes, *book, bias, weight.bits, rows)
    else:
        assert isinstance(weight, CodebookWeight), "the ops serve no other weight"
        entries = weight.entries if weight.interleaved else weight.by_row(weight.codebook)
        y = product.codebook_linear_float(x, weight.codes, entries, bias, weight.bits, rows)
    return y


def convolve(
    x: Tensor,
    weight: PackedWeight,
    bias: Tensor | None,
    activation: str,
    geometry: tuple[list[int], list[int], list[int], list[int]],
    step: Tensor | None,
) -> Tensor:
    """A convolution with zeros around x, as `kernels.conv` gives it.

    Args:
        geometry: Sizes of the kernel, stride, dilation, and padding at each edge, as
            `torch.nn.functional.pad` takes it.
    """
    tensors: tuple[Tensor | None, ...]
    if isinstance(weight, IntegerWeight):
        tensors = weight.codes, weight.scale, weight.zero, None
        group_size = weight.group_size
    else:
        assert isinstance(weight, CodebookWeight), "no other weight is interleaved"
        tensors = weight.codes, weight.step, None, weight.table
        group_size = 0
    size = weight.bits, group_size, weight.out_features
    int8 = activation != "float"
    y: Tensor = torch.ops.tauten.conv(x, *tensors, bias, *size, *geometry, int8, step)
    return y


class Product(torch.autograd.Function):
    """The product with derivatives for x and bias; rounding of x passes them as they are."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, bias: Tensor | None, weight: PackedWeight, activation: str) -> Tensor:
        return multiply(x, weight, bias, activation)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, bias, ctx.weight, _ = inputs
        ctx.bias_dtype = None if bias is None else bias.dtype

    @staticmethod
    def jvp(ctx: Any, x: Tensor | None, bias: Tensor | None, *_: None) -> Tensor | None:
        if x is None:
            return bias
        y: Tensor = x @ ctx.weight.dequantize(x.dtype).flatten(1).t()
        return y if bias is None else y + bias

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
        to_x = gradient @ ctx.weight.dequantize(gradient.dtype).flatten(1)
        to_bias = None
        if ctx.bias_dtype is not None:
            to_bias = gradient.flatten(0, -2).sum(0) if gradient.dim() > 1 else gradient
            to_bias = to_bias.to(ctx.bias_dtype)
        return to_x, to_bias, None, None
