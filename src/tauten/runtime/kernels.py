"""Products on packed weights by the native library, or in plain torch where it doesn't serve."""

import math
from typing import Any

import torch
from torch import Tensor

from tauten.core.errors import InputError
from tauten.formats.codebook import CodebookWeight
from tauten.formats.integer import ZERO_KINDS, IntegerWeight
from tauten.formats.interleaved import COLUMNS, ROWS
from tauten.formats.packed import PackedWeight
from tauten.runtime import library, reference

# Above this many columns that share a scale, a sum of products of bytes can leave int32.
MAX_GROUP = 1 << 16
MAX_BOOK_BITS = 4  # a vector instruction looks into tables of 16
_GRIDS = (torch.float16, torch.float32)


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
        return _Product.apply(x, bias, weight, activation)  # type: ignore[no-any-return,no-untyped-call]
    return _multiply(x, weight, bias, activation)


def prepare(weight: PackedWeight) -> bool:
    """Interleave a weight in place if the native library serves it; whether it does.

    `linear` does so on first use, but not under `torch.compile`: a graph can't change a layout.
    """
    if isinstance(weight, IntegerWeight):
        grouped = weight.group_size % COLUMNS == 0 and weight.columns_per_group <= MAX_GROUP
        fits = grouped and weight.scale.dtype in _GRIDS
    elif isinstance(weight, CodebookWeight):
        fits = weight.bits <= MAX_BOOK_BITS and weight.in_features <= MAX_GROUP
    else:
        return False
    if not fits or weight.codes.device.type != "cpu" or library.load() is None:
        return False
    weight.interleave()
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


torch.library.define(
    "tauten::integer_linear",
    "(Tensor x, Tensor codes, Tensor scale, Tensor? zero, Tensor? bias, int bits, "
    "int group_size, int rows, bool int8) -> Tensor",
)
torch.library.define(
    "tauten::codebook_linear",
    "(Tensor x, Tensor codes, Tensor table, Tensor step, Tensor? bias, int bits, int rows)"
    " -> Tensor",
)


@torch.library.impl("tauten::integer_linear", "CPU")
def _integer_linear(
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    zero: Tensor | None,
    bias: Tensor | None,
    bits: int,
    group_size: int,
    rows: int,
    int8: bool,
) -> Tensor:
    """x (..., in) floating, the interleaved tensors of an IntegerWeight -> (..., rows) as x."""
    columns = _check_sizes(x, bits, 8, group_size, rows)
    blocks, chunks = -(-rows // ROWS), -(-columns // COLUMNS)
    cells = (blocks, -(-columns // (group_size or columns)), ROWS)
    _check("codes", codes, (blocks, chunks, bits, 64), (torch.uint8,))
    _check("scale", scale, cells, _GRIDS)
    kind = "none"
    if zero is not None:
        _check("zero", zero, cells, (torch.uint8, scale.dtype))
        kind = "integer" if zero.dtype == torch.uint8 else "float"
    return _call(x, bias, (codes, scale, zero, None), kind, bits, rows, group_size, int8)


@torch.library.impl("tauten::codebook_linear", "CPU")
def _codebook_linear(
    x: Tensor, codes: Tensor, table: Tensor, step: Tensor, bias: Tensor | None, bits: int, rows: int
) -> Tensor:
    """x (..., in) floating, the interleaved tensors of a CodebookWeight -> (..., rows) as x."""
    columns = _check_sizes(x, bits, MAX_BOOK_BITS, 0, rows)
    blocks, chunks = -(-rows // ROWS), -(-columns // COLUMNS)
    _check("codes", codes, (blocks, chunks, bits, 64), (torch.uint8,))
    _check("table", table, (blocks, 4, 4, 16), (torch.int8,))
    _check("step", step, (blocks, 1, ROWS), (torch.float32,))
    return _call(x, bias, (codes, step, None, table), "none", bits, rows, 0, True)


@torch.library.register_fake("tauten::integer_linear")  # type: ignore[untyped-decorator]
def _fake_integer_linear(
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    zero: Tensor | None,
    bias: Tensor | None,
    bits: int,
    group_size: int,
    rows: int,
    int8: bool,
) -> Tensor:
    return x.new_empty(*x.shape[:-1], rows)


@torch.library.register_fake("tauten::codebook_linear")  # type: ignore[untyped-decorator]
def _fake_codebook_linear(
    x: Tensor, codes: Tensor, table: Tensor, step: Tensor, bias: Tensor | None, bits: int, rows: int
) -> Tensor:
    return x.new_empty(*x.shape[:-1], rows)


def _call(
    x: Tensor,
    bias: Tensor | None,
    tensors: tuple[Tensor | None, ...],
    zero_kind: str,
    bits: int,
    rows: int,
    group_size: int,
    int8: bool,
) -> Tensor:
    """The library's product, on tensors (codes, scale, zero, book) that have been checked."""
    native = library.load()
    if native is None:
        raise InputError("this op needs tauten's native library, which isn't built")
    if bias is not None:
        _check("bias", bias, (rows,), (bias.dtype,))
        bias = bias.float()
    inputs, columns = x.float().contiguous(), x.shape[-1]
    y = torch.empty(*x.shape[:-1], rows)
    scale = tensors[1]
    status = native.handle.tauten_linear(
        inputs.data_ptr(),
        math.prod(x.shape[:-1]),
        *(None if tensor is None else tensor.data_ptr() for tensor in tensors),
        ZERO_KINDS.index(zero_kind),
        scale is not None and scale.dtype == torch.float16,
        bits,
        rows,
        columns,
        -(-(group_size or columns) // COLUMNS),
        None if bias is None else bias.data_ptr(),
        y.data_ptr(),
        int8,
        native.isa,
        torch.get_num_threads(),
    )
    if status:
        raise MemoryError(f"no memory for the activations of {tuple(x.shape)} x {rows} rows")
    return y.to(x.dtype)


def _check_sizes(x: Tensor, bits: int, most_bits: int, group_size: int, rows: int) -> int:
    """Raise InputError unless the sizes make a weight that fits x; its columns."""
    if x.dim() == 0 or not x.is_floating_point():
        raise InputError(f"x of {x.dim()} dimensions and {x.dtype}: expected (..., in) floating")
    columns = x.shape[-1]
    if not 1 <= bits <= most_bits or rows < 1 or columns < 1:
        sizes = f"{rows} x {columns} at {bits} bits"
        raise InputError(f"a weight of {sizes}: expected 1 to {most_bits} bits, no empty side")
    if group_size < 0 or group_size % COLUMNS or (group_size or columns) > MAX_GROUP:
        expected = f"a multiple of {COLUMNS} up to {MAX_GROUP}, or 0 for whole rows up to that"
        raise InputError(f"group_size={group_size}: expected {expected}")
    return columns


def _check(
    name: str, tensor: Tensor, shape: tuple[int, ...], dtypes: tuple[torch.dtype, ...]
) -> None:
    if tensor.shape != shape or tensor.dtype not in dtypes or tensor.device.type != "cpu":
        expected = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        got = f"{tuple(tensor.shape)} {tensor.dtype} on {tensor.device}"
        raise InputError(f"{name} is {got}: expected {shape} {expected} on cpu")
    if not tensor.is_contiguous():
        raise InputError(f"{name} isn't contiguous")
