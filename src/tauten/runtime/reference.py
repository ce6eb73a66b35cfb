"""Every kernel in plain torch: the meaning of the native ones, and what serves without them."""

import torch
from torch import Tensor

from tauten.formats.integer import IntegerWeight
from tauten.formats.packed import PackedWeight


def linear(
    x: Tensor, weight: PackedWeight, bias: Tensor | None, activation: str = "float"
) -> Tensor:
    """x @ weight.T + bias on a packed weight.

    Args:
        x: (..., in) floating.
        weight: (out, in) packed.
        bias: (out,) or None.
        activation: `float` keeps x; `int8` rounds each token (and group of columns) to 8 bits.
    Returns:
        (..., out) in the dtype of x.
    """
    if activation == "int8" and isinstance(weight, IntegerWeight):
        if weight.bits == 8 and weight.zero_kind == "none" and weight.groups == 1:
            return _int8_product(x, weight, bias)
        size = weight.columns_per_group
        cells = torch.nn.functional.pad(x.float(), (0, -x.shape[-1] % size)).unflatten(-1, (-1, size))
        codes, scale = quantize_tokens(cells)
        x = (codes.float() * scale).flatten(-2)[..., : x.shape[-1]].to(x.dtype)
    return torch.nn.functional.linear(x, weight.dequantize(x.dtype), bias)


def quantize_tokens(x: Tensor) -> tuple[Tensor, Tensor]:
    """Round the last dimension to 8 bits, symmetric, with one scale for it.

    Args:
        x: (..., n) floating.
    Returns:
        (..., n) int8 in [-127, 127], and its scale (..., 1) float32; a token with NaN or
        infinity has a NaN scale, so that what it feeds is NaN and not a clamped lie.
    """
    scale = x.float().abs().amax(-1, keepdim=True) / 127
    scale = torch.where(scale.isfinite(), scale, torch.nan)
    inverse = torch.where(scale > 0, 1 / scale, 0.0)
    return (x.float() * inverse).round_().to(torch.int8), scale


def _int8_product(x: Tensor, weight: IntegerWeight, bias: Tensor | None) -> Tensor:
    tokens = x.flatten(0, -2) if x.dim() > 1 else x[None]
    codes, scale = quantize_tokens(tokens)  # (tokens, in), (tokens, 1)
    product = torch._int_mm(codes, weight.codes.view(torch.int8).t())  # exact in int32
    y = product.float() * scale * weight.scale.float().t()
    if bias is not None:
        y += bias
    return y.to(x.dtype).view(*x.shape[:-1], weight.out_features)
