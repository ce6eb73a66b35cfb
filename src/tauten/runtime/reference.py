"""Every kernel in plain torch: the meaning of the native ones, and what serves without them."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from tauten.formats.codebook import CodebookWeight
from tauten.formats.integer import IntegerWeight
from tauten.formats.packed import PackedWeight
from tauten.formats.shared_rows import SharedRowsWeight

_CONVOLUTIONS = {
    1: torch.nn.functional.conv1d,
    2: torch.nn.functional.conv2d,
    3: torch.nn.functional.conv3d,
}
_UNFOLDED = 1 << 22  # columns held at a time, give or take a sample


def linear(
    x: Tensor, weight: PackedWeight, bias: Tensor | None, activation: str = "float"
) -> Tensor:
    """x @ weight.T + bias on a packed weight.

    Args:
        x: (..., in) floating.
        weight: (out, in) packed.
        bias: (out,) or None.
        activation: `float` keeps x; `int8` rounds each token (and group of columns) to 8 bits,
            and the entries of a codebook. A sparse weight and one of shared rows keep x under
            either.
    Returns:
        (..., out) in the dtype of x.
    """
    if isinstance(weight, SharedRowsWeight):
        y = weight.spread(torch.nn.functional.linear(x, weight.shared.to(x.dtype)))
        return y if bias is None else y + bias.to(x.dtype)
    if activation == "int8" and isinstance(weight, IntegerWeight):
        per_token = weight.bits == 8 and weight.zero_kind == "none" and weight.groups == 1
        on_cpu = x.device.type == "cpu"  # on a GPU `_int_mm` refuses few tokens
        constant = not x.requires_grad and not has_tangent(x)
        if per_token and on_cpu and not weight.interleaved and constant:
            return _int8_product(x, weight, bias)
        x = round_activations(x, weight.columns_per_group)
    if activation == "int8" and isinstance(weight, CodebookWeight):
        x, matrix = round_activations(x, weight.in_features), _rounded_matrix(weight).to(x.dtype)
    else:
        matrix = weight.dequantize(x.dtype).flatten(1)
    bias = None if bias is None else bias.to(x.dtype)
    return torch.nn.functional.linear(x, matrix, bias)


def conv(
    x: Tensor,
    weight: PackedWeight,
    bias: Tensor | None,
    activation: str,
    settings: Mapping[str, Any],
) -> Tensor:
    """Convolution with a packed weight.

    Args:
        x: (batch, in, *size) floating.
        weight: (out, in / groups, *kernel) packed.
        bias: (out,) or None.
        activation: `int8` rounds what each output position sees as `linear` rounds a token; it
            needs groups == 1.
        settings: stride, padding, dilation, groups, padding_mode and pad_edges.
    Returns:
        (batch, out, *positions) in the dtype of x.
    """
    stride, dilation = settings["stride"], settings["dilation"]
    if activation == "int8":
        x = pad(x, settings)
        cost = weight.in_features * x[:1, 0].numel()  # of the columns of one sample, about
        parts = x.split(max(1, _UNFOLDED // max(cost, 1)))
        products = [
            linear(_columns(part, weight, settings), weight, bias, "int8") for part in parts
        ]
        return torch.cat(products).movedim(-1, 1).contiguous()
    padding = settings["padding"]
    if settings["padding_mode"] != "zeros":
        x, padding = pad(x, settings), 0
    bias = None if bias is None else bias.to(x.dtype)
    convolve = _CONVOLUTIONS[len(stride)]
    if isinstance(weight, SharedRowsWeight) and settings["groups"] == 1:
        kernels = weight.shared.to(x.dtype).view(-1, *weight.shape[1:])
        y = weight.spread(convolve(x, kernels, None, stride, padding, dilation), 1)
        return y if bias is None else y + bias.view(-1, *(1 for _ in stride))
    matrix = weight.dequantize(x.dtype)
    return convolve(x, matrix, bias, stride, padding, dilation, settings["groups"])


def pad(x: Tensor, settings: Mapping[str, Any]) -> Tensor:
    """x (batch, in, *size) with the padding that a convolution's settings ask for."""
    mode = settings["padding_mode"]
    mode = "constant" if mode == "zeros" else mode
    edges = settings["pad_edges"]
    return torch.nn.functional.pad(x, edges, mode=mode) if any(edges) else x


def _columns(x: Tensor, weight: PackedWeight, settings: Mapping[str, Any]) -> Tensor:
    """What each position of x (batch, in, *size) sees: (batch, *positions, in * kernel)."""
    kernel = weight.shape[2:]
    for i, size in enumerate(kernel):
        dilation = settings["dilation"][i]
        x = x.unfold(2 + i, dilation * (size - 1) + 1, settings["stride"][i])[..., ::dilation]
    return x.movedim(1, 1 + len(kernel)).flatten(1 + len(kernel))


def round_activations(x: Tensor, size: int) -> Tensor:
    """x (..., in) rounded to 8 bits per `size` columns; gradients pass as if it weren't."""
    cells = torch.nn.functional.pad(x.detach().float(), (0, -x.shape[-1] % size))
    codes, scale = quantize_tokens(cells.view(*x.shape[:-1], cells.shape[-1] // size, size))
    return _passing((codes.float() * scale).flatten(-2)[..., : x.shape[-1]].to(x.dtype), x)


def round_to_step(x: Tensor, step: Tensor | None) -> Tensor:
    """x rounded to -127 to 127 times a step (); gradients pass as if it weren't.

    Infinity becomes NaN, so that it feeds NaN and not a clamped lie.
    """
    assert step is not None, "static activations come with a step"
    width = step.float()
    codes = (x.detach().float() * (1 / width)).round_().clamp_(-127, 127)
    return _passing(torch.where(x.isfinite(), codes * width, torch.nan).to(x.dtype), x)


def has_tangent(x: Tensor) -> bool:
    """Whether x is differentiated forward; compilers don't see that."""
    if torch.compiler.is_compiling():
        return False
    return forward_ad.unpack_dual(x).tangent is not None


def _passing(rounded: Tensor, x: Tensor) -> Tensor:
    """Rounded values with the derivatives of x, forward and backward."""
    return rounded + (x - x.detach()) if x.requires_grad or has_tangent(x) else rounded


def quantize_tokens(x: Tensor) -> tuple[Tensor, Tensor]:
    """Round the last dimension to 8 bits, symmetric, with one scale for it.

    Args:
        x: (..., n) floating.
    Returns:
        (..., n) int8 in [-127, 127], and its scale (..., 1) float32; a token with NaN or
        infinity has a NaN scale, so that what it feeds is NaN and not a clamped lie.
    """
    scale = x.float().abs().amax(-1, keepdim=True) / 127
    usable = scale.isfinite() & (scale >= torch.finfo(torch.float32).tiny)
    codes = torch.where(usable, x.float() * (1 / scale), 0.0).round_().to(torch.int8)
    finite = torch.where(usable, scale, 0.0)  # smaller than a normal number counts as 0
    return codes, torch.where(scale.isfinite(), finite, torch.nan)


def _rounded_matrix(weight: CodebookWeight) -> Tensor:
    entries, step = weight.rounded_codebook()
    codebook = (entries.float() * step).expand(weight.out_features, -1)
    return codebook.gather(1, weight.integer_codes().long())


def _int8_product(x: Tensor, weight: IntegerWeight, bias: Tensor | None) -> Tensor:
    tokens = x.flatten(0, -2) if x.dim() > 1 else x[None]
    codes, scale = quantize_tokens(tokens)  # (tokens, in), (tokens, 1)
    product = torch._int_mm(codes, weight.codes.view(torch.int8).t())  # exact in int32
    y = product.float() * scale * weight.scale.float().t()
    if bias is not None:
        y += bias
    return y.to(x.dtype).view(*x.shape[:-1], weight.out_features)
