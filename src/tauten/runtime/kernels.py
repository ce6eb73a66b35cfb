"""Products on packed weights by the native library, or in plain torch where it doesn't serve."""

from typing import Any

import torch
from torch import Tensor

from tauten.core.errors import InputError
from tauten.formats.codebook import CodebookWeight
from tauten.formats.integer import IntegerWeight
from tauten.formats.interleaved import COLUMNS
from tauten.formats.packed import PackedWeight
from tauten.runtime import library, ops, reference


def linear(
    x: Tensor, weight: PackedWeight, bias: Tensor | None = None, activation: str = "float"
) -> Tensor:
    """x @ weight.T + bias on a packed weight.

    A weight that the native library serves is interleaved in place on its first use.

    Args:
        x: (..., in) floating.
        weight: (out, in) packed.
        bias: (out,) or None.
        activation: `float` keeps x; `int8` rounds each token (and group of columns) to 8 bits,
            and the entries of a codebook.
    Returns:
        (..., out) in the dtype of x.
    """
    if activation not in ("float", "int8"):
        raise InputError(f"activation={activation!r}: expected 'float' or 'int8'")
    wants_gradient = torch.is_grad_enabled() and (
        x.requires_grad or (bias is not None and bias.requires_grad)
    )
    compiling = torch.compiler.is_compiling()
    if not _native(x, weight, activation, compiling) or (wants_gradient and compiling):
        return reference.linear(x, weight, bias, activation)
    if wants_gradient:
        y: Tensor = _Product.apply(x, bias, weight, activation)  # type: ignore[no-untyped-call]
        return y
    return _multiply(x, weight, bias, activation)


def rows(index: Tensor, weight: PackedWeight, dtype: torch.dtype = torch.float32) -> Tensor:
    """Rows of a packed weight, as an embedding looks them up.

    Args:
        index: (...) int64 or int32, from 0 on.
        weight: (out, in) packed; an integer weight is interleaved in place as `linear` does.
        dtype: Of the result.
    Returns:
        (..., in) in `dtype`.
    Raises:
        IndexError: An index isn't a row of the weight.
    """
    compiling = torch.compiler.is_compiling()
    if not isinstance(weight, IntegerWeight) or not _native(index, weight, "float", compiling):
        found = weight.dequantize_rows(index.flatten(), dtype)
    else:
        grid = (weight.codes, weight.scale, weight.zero)
        size = (weight.bits, weight.group_size, weight.out_features, weight.in_features)
        found = torch.ops.tauten.integer_rows(index, *grid, *size).to(dtype)
    return found.view(*index.shape, weight.in_features)


def prepare(weight: PackedWeight) -> bool:
    """Interleave a weight in place if the native library serves it; whether it does.

    `linear` does so on first use, but not under `torch.compile`: a graph can't change a layout.
    """
    if isinstance(weight, IntegerWeight):
        grouped = weight.group_size % COLUMNS == 0 and weight.columns_per_group <= ops.MAX_GROUP
        fits = grouped and weight.scale.dtype in ops.GRID_DTYPES
    elif isinstance(weight, CodebookWeight):
        fits = weight.bits <= ops.MAX_BOOK_BITS and weight.in_features <= ops.MAX_GROUP
    else:
        return False
    native = library.load()
    if not fits or weight.codes.device.type != "cpu" or native is None:
        return False
    if not weight.interleaved:
        weight.interleave()
        for tensor in weight.buffers():
            native.use_huge_pages(tensor)
    return True


def _native(x: Tensor, weight: PackedWeight, activation: str, compiling: bool) -> bool:
    """Whether the native ops take this product; the weight is then interleaved."""
    if not isinstance(weight, IntegerWeight | CodebookWeight):
        return False
    if isinstance(weight, CodebookWeight) and activation == "float":
        return False
    if x.device.type != "cpu" or weight.codes.device.type != "cpu":
        return False
    return weight.interleaved or (not compiling and prepare(weight))


def _multiply(x: Tensor, weight: PackedWeight, bias: Tensor | None, activation: str) -> Tensor:
    y: Tensor
    if isinstance(weight, IntegerWeight):
        grid = (weight.codes, weight.scale, weight.zero)
        size = (weight.bits, weight.group_size, weight.out_features)
        y = torch.ops.tauten.integer_linear(x, *grid, bias, *size, activation == "int8")
    else:
        assert isinstance(weight, CodebookWeight), "no other weight is interleaved"
        book = (weight.codes, weight.table, weight.step)
        y = torch.ops.tauten.codebook_linear(x, *book, bias, weight.bits, weight.out_features)
    return y


class _Product(torch.autograd.Function):
    """The product with gradients for x and bias; rounding of x passes them as they are."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, bias: Tensor | None, weight: PackedWeight, activation: str
    ) -> Tensor:
        ctx.weight, ctx.bias_dtype = weight, None if bias is None else bias.dtype
        return _multiply(x, weight, bias, activation)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
        to_x = gradient @ ctx.weight.dequantize(gradient.dtype).flatten(1)
        to_bias = None
        if ctx.bias_dtype is not None:
            to_bias = gradient.flatten(0, -2).sum(0) if gradient.dim() > 1 else gradient
            to_bias = to_bias.to(ctx.bias_dtype)
        return to_x, to_bias, None, None
