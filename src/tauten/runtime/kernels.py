"""Products on packed weights by native code or on a GPU, or in plain torch where neither serves."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tauten.core.errors import InputError
from tauten.formats.codebook import CodebookWeight
from tauten.formats.integer import IntegerWeight
from tauten.formats.interleaved import COLUMNS
from tauten.formats.packed import SCALE_DTYPES, PackedWeight
from tauten.formats.sparse import SparseWeight
from tauten.formats.sum import SumWeight
from tauten.runtime import library, ops, reference
from tauten.runtime.conv_op import output_size
from tauten.runtime.gpu import ops as gpu_ops
from tauten.runtime.products import Product, convolve, multiply

# A float convolution at more positions than this, for each row of the weight, is faster dense.
_DENSE_POSITIONS = 4
ACTIVATIONS = ("float", "int8", "static")


def linear(
    x: Tensor,
    weight: PackedWeight,
    bias: Tensor | None = None,
    activation: str = "float",
    step: Tensor | None = None,
) -> Tensor:
    """x @ weight.T + bias on a packed weight.

    A weight that the native library serves is interleaved in place on its first use, once whatever
    threads meet there; on a GPU weights are read by rows. Differentiable in x and bias, forward
    and backward; rounding of x passes derivatives as they are.

    Args:
        x: (..., in) floating.
        weight: (out, in) packed.
        bias: (out,) or None.
        activation: `float` keeps x; `int8` rounds each token (and group of columns) to 8 bits,
            and the entries of a codebook. A sparse weight and one of shared rows keep x under
            either. `static` rounds x to -127 to 127 times `step`, whatever the weight.
        step: () floating, for `static`.
    Returns:
        (..., out) in the dtype of x.
    Raises:
        InputError: The activation is unknown or lacks its step, x has other columns than the
            weight, or lies on another device.
    """
    _check_activation(activation, step)
    columns = weight.in_features
    if x.shape[-1:] != (columns,):  # codes are padded, so that the ops wouldn't notice
        raise InputError(f"x of shape {tuple(x.shape)}: expected (..., {columns})")
    if isinstance(weight, SumWeight):
        first = linear(x, weight.first, bias, activation, step)
        return first + linear(x, weight.second, None, activation, step)
    wants_gradient = _wants_gradient(x, bias)
    native = _native(x, weight)
    if activation == "static" and (
        wants_gradient or not (native and isinstance(weight, IntegerWeight))
    ):
        x, activation, step = reference.round_to_step(x, step), "float", None
    served = native or gpu_ops.serves(x, weight)
    if not served or (wants_gradient and torch.compiler.is_compiling()):
        _check_device(x, weight)
        return reference.linear(x, weight, bias, activation)
    if wants_gradient:
        y: Tensor = Product.apply(x, bias, weight, activation)  # type: ignore[no-untyped-call]
        return y
    return multiply(x, weight, bias, activation, step)


def conv(
    x: Tensor,
    weight: PackedWeight,
    bias: Tensor | None,
    activation: str,
    settings: Mapping[str, Any],
    step: Tensor | None = None,
) -> Tensor:
    """Convolution with a packed weight.

    With int8 activations it is one product on the packed weight. With float ones, a dense weight
    made for each call is the faster way where positions are many, and the only one with groups.

    Args:
        x: (batch, in, *size) floating, or (in, *size).
        weight: (out, in / groups, *kernel) packed, interleaved in place as `linear` does.
        bias: (out,) or None.
        activation: `float` keeps x; `int8` rounds what each output position sees to 8 bits, by
            groups of columns as `linear` does for a token. Padding stays exactly zero. `static`
            is as for `linear`.
        settings: stride, padding, dilation, groups, padding_mode and pad_edges, as in torch.
        step: () floating, for `static`.
    Returns:
        (batch, out, *positions), or (out, *positions), contiguous, in the dtype of x.
    Raises:
        InputError: x doesn't fit the weight, or int8 is asked for with groups.
    """
    _check_activation(activation, step)
    if x.dim() == len(weight.shape) - 1:
        return conv(x[None], weight, bias, activation, settings, step)[0]
    if isinstance(weight, SumWeight):
        first = conv(x, weight.first, bias, activation, settings, step)
        return first + conv(x, weight.second, None, activation, settings, step)
    groups = settings["groups"]
    _check_image(x, weight, activation, groups)
    by_table = isinstance(weight, CodebookWeight) and activation != "int8"
    served = groups == 1 and _native(x, weight)
    if by_table or isinstance(weight, SparseWeight) or not served or _wants_gradient(x, bias):
        if activation == "static":
            x, activation = reference.round_to_step(x, step), "float"
        return reference.conv(x, weight, bias, activation, settings)
    steps = list(weight.shape[2:]), settings["stride"], settings["dilation"]
    edges = settings["pad_edges"]
    # An exported program serves other batches than the one it was traced with.
    if activation == "float" and not torch.compiler.is_exporting():
        positions = x.shape[0] * math.prod(output_size(x.shape[2:], *steps, edges))
        if positions > _DENSE_POSITIONS * weight.out_features:
            return reference.conv(x, weight, bias, activation, settings)
    if settings["padding_mode"] != "zeros":  # the native code knows zeros only
        x, edges = reference.pad(x, settings), [0] * len(edges)
    return convolve(x, weight, bias, activation, (*steps, edges), step)


def rows(index: Tensor, weight: PackedWeight, dtype: torch.dtype = torch.float32) -> Tensor:
    """Rows of a packed weight, as an embedding looks them up.

    Args:
        index: (...) int64 or int32, from 0 on.
        weight: (out, in) packed, interleaved in place as `linear` does.
        dtype: Of the result.
    Returns:
        (..., in) in `dtype`.
    Raises:
        IndexError: An index isn't a row of the weight; on a GPU the error is CUDA's.
    """
    if isinstance(weight, SumWeight):
        return rows(index, weight.first, dtype) + rows(index, weight.second, dtype)
    if not (_native(index, weight) and isinstance(weight, IntegerWeight)):
        found = weight.dequantize_rows(index.flatten(), dtype)
    else:
        grid = (weight.codes, weight.scale, weight.zero)
        size = (weight.bits, weight.group_size, weight.out_features, weight.in_features)
        found = torch.ops.tauten.integer_rows(index, *grid, *size).to(dtype)
    return found.view(*index.shape, weight.in_features)


def prepare(weight: PackedWeight) -> bool:
    """Interleave a weight in place if the native library serves it; whether it does.

    All that reads a weight while others may use it calls this before. On a GPU weights stay by
    rows.
    """
    if isinstance(weight, SumWeight):
        served: list[bool] = [prepare(part) for part in (weight.first, weight.second)]
        return all(served)
    if not _served(weight):
        return False
    assert isinstance(weight, IntegerWeight | CodebookWeight | SparseWeight)
    if torch.compiler.is_exporting() and not weight.interleaved:
        raise InputError(
            "a packed weight can't change its layout while torch.export traces: run the model "
            "once before, or call tauten.runtime.kernels.prepare on each weight"
        )
    native = library.load()
    if not weight.interleaved and native is not None:
        weight.interleave()
        for tensor in weight.buffers():
            native.use_huge_pages(tensor)
    return True


def serves_on(device: torch.device, weight: PackedWeight, dtype: torch.dtype) -> bool:
    """Whether a device has a kernel for products of a weight with activations of a dtype.

    Args:
        device: Where the weight would be.
        weight: (out, in, ...), anywhere.
        dtype: Of the activations.
    """
    if isinstance(weight, SumWeight):
        parts = (weight.first, weight.second)
        return all(serves_on(device, part, dtype) for part in parts)
    if device.type == "cuda":
        return gpu_ops.TRITON and gpu_ops.takes(weight, dtype)
    return device.type == "cpu" and _fits(weight) and library.load() is not None


# A compiler runs it while it traces, on the real weight, and takes the answer for a constant. This
# is all that torch.compiler.assume_constant_result does, but that imports the compiler: a second.
prepare._dynamo_marked_constant = True  # type: ignore[attr-defined]


def memory_bytes(weight: PackedWeight) -> int:
    """Bytes of a weight's tensors on a CPU once it was used: those for the native library take more
    than those on disk where scales are expanded, or codes are too dense to be read fast.

    Args:
        weight: Perhaps on the meta device.
    """
    if isinstance(weight, SumWeight):
        return memory_bytes(weight.first) + memory_bytes(weight.second)
    if library.load() is None or not _fits(weight):
        return weight.size_bytes
    assert isinstance(weight, IntegerWeight | CodebookWeight | SparseWeight)
    return weight.interleaved_bytes


def _served(weight: PackedWeight) -> bool:
    """Whether the native library multiplies by a weight where it lies."""
    return _fits(weight) and _on_cpu(weight) and library.load() is not None


def _fits(weight: PackedWeight) -> bool:
    """Whether the native library can multiply by a weight."""
    if isinstance(weight, IntegerWeight):
        grouped = weight.group_size % COLUMNS == 0 and weight.columns_per_group <= ops.MAX_GROUP
        return grouped and weight.scale.dtype in SCALE_DTYPES
    if isinstance(weight, CodebookWeight):
        return weight.bits <= ops.MAX_BOOK_BITS and weight.in_features <= ops.MAX_GROUP
    if isinstance(weight, SparseWeight):
        return weight.grid is None or weight.grid.group_size % COLUMNS == 0
    return False


def _native(x: Tensor, weight: PackedWeight) -> bool:
    """Whether the native ops take this product; the weight is then interleaved."""
    served: bool = x.device.type == "cpu" and prepare(weight)
    return served


def _wants_gradient(x: Tensor, bias: Tensor | None) -> bool:
    with_bias = bias is not None and bias.requires_grad
    if torch.is_grad_enabled() and (x.requires_grad or with_bias):
        return True
    return reference.has_tangent(x) or (bias is not None and reference.has_tangent(bias))


def _check_activation(activation: str, step: Tensor | None) -> None:
    if activation not in ACTIVATIONS:
        raise InputError(f"activation={activation!r}: expected one of {', '.join(ACTIVATIONS)}")
    if (step is None) == (activation == "static"):
        raise InputError(f"activation={activation!r} with step={step}: just 'static' has a step")


def _on_cpu(weight: PackedWeight) -> bool:
    # They move together, and the ops look at each: asking all of them takes long for every call.
    return next(weight.buffers()).device.type == "cpu"


def _check_device(x: Tensor, weight: PackedWeight) -> None:
    for buffer in weight.buffers():
        if buffer.device != x.device:
            places = f"x is on {x.device}, the weight on {buffer.device}"
            raise InputError(f"{places}: move one of them with `.to(device)`")


def _check_image(x: Tensor, weight: PackedWeight, activation: str, groups: int) -> None:
    if activation == "int8" and groups != 1:
        raise InputError(f"groups={groups} with int8 activations: use activation='float'")
    channels = weight.shape[1] * groups
    if x.dim() != len(weight.shape) or x.shape[1] != channels or not x.is_floating_point():
        got, sizes = f"x of shape {tuple(x.shape)} and {x.dtype}", len(weight.shape) - 2
        raise InputError(f"{got}: expected (batch, {channels}, *size) floating with {sizes} sizes")
