"""Products on packed weights by the native library, or in plain torch where it doesn't serve."""

import math

import torch
from torch import Tensor

from tauten.core.errors import InputError
from tauten.formats.integer import ZERO_KINDS, IntegerWeight
from tauten.formats.interleaved import COLUMNS, ROWS
from tauten.formats.packed import PackedWeight
from tauten.runtime import library, reference

# Above this many columns that share a scale, a sum of products of bytes can leave int32.
MAX_GROUP = 1 << 16
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
        activation: `float` keeps x; `int8` rounds each token (and group of columns) to 8 bits.
    Returns:
        (..., out) in the dtype of x.
    """
    if activation not in ("float", "int8"):
        raise InputError(f"activation={activation!r}: expected 'float' or 'int8'")
    if not isinstance(weight, IntegerWeight) or not _native(x, weight, bias):
        return reference.linear(x, weight, bias, activation)
    if not weight.interleaved:
        if torch.compiler.is_compiling():  # a graph can't change the weight's layout
            return reference.linear(x, weight, bias, activation)
        weight.interleave()
    return torch.ops.tauten.integer_linear(
        x,
        weight.codes,
        weight.scale,
        weight.zero,
        bias,
        weight.bits,
        weight.group_size,
        weight.out_features,
        activation == "int8",
    )


def prepare(weight: PackedWeight) -> None:
    """Interleave a weight that the native library serves, before `torch.compile` sees it."""
    if isinstance(weight, IntegerWeight) and serves(weight):
        weight.interleave()


def serves(weight: IntegerWeight) -> bool:
    """Whether the native library computes with a weight of this format and device."""
    return (
        weight.codes.device.type == "cpu"
        and weight.group_size % COLUMNS == 0
        and weight.columns_per_group <= MAX_GROUP
        and weight.scale.dtype in _GRIDS
        and library.load() is not None
    )


def _native(x: Tensor, weight: IntegerWeight, bias: Tensor | None) -> bool:
    wants_gradient = torch.is_grad_enabled() and (
        x.requires_grad or (bias is not None and bias.requires_grad)
    )
    return x.device.type == "cpu" and not wants_gradient and serves(weight)


torch.library.define(
    "tauten::integer_linear",
    "(Tensor x, Tensor codes, Tensor scale, Tensor? zero, Tensor? bias, int bits, "
    "int group_size, int rows, bool int8) -> Tensor",
)


@torch.library.register_fake("tauten::integer_linear")
def _fake_linear(
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
    """The op: x (..., in) floating, a weight's interleaved tensors -> (..., rows) as x."""
    native = library.load()
    if native is None:
        raise InputError("tauten::integer_linear needs the native library, which isn't built")
    if x.dim() == 0 or not x.is_floating_point():
        raise InputError(f"x of {x.dim()} dimensions and {x.dtype}: expected (..., in) floating")
    columns = x.shape[-1]
    kind = _check_weight(codes, scale, zero, bits, group_size, rows, columns)
    if bias is not None:
        _check("bias", bias, (rows,), (bias.dtype,))
        bias = bias.float().contiguous()
    inputs = x.float().contiguous()
    y = torch.empty(*x.shape[:-1], rows)
    status = native.handle.tauten_linear(
        inputs.data_ptr(),
        math.prod(x.shape[:-1]),
        codes.data_ptr(),
        scale.data_ptr(),
        None if zero is None else zero.data_ptr(),
        kind,
        scale.dtype == torch.float16,
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


def _check_weight(
    codes: Tensor,
    scale: Tensor,
    zero: Tensor | None,
    bits: int,
    group_size: int,
    rows: int,
    columns: int,
) -> int:
    """Raise InputError unless the tensors are what the kernels will read; the kind of zero."""
    if bits not in range(1, 9) or rows < 1 or columns < 1:
        raise InputError(f"a weight of {rows} x {columns} at {bits} bits: expected 1 to 8 bits")
    size = group_size or columns
    if group_size < 0 or group_size % COLUMNS or size > MAX_GROUP:
        raise InputError(f"group_size={group_size}: expected a multiple of {COLUMNS}, or 0")
    blocks, chunks = -(-rows // ROWS), -(-columns // COLUMNS)
    cells = (blocks, -(-columns // size), ROWS)
    _check("codes", codes, (blocks, chunks, bits, 64), (torch.uint8,))
    _check("scale", scale, cells, _GRIDS)
    if zero is None:
        return ZERO_KINDS.index("none")
    _check("zero", zero, cells, (torch.uint8, scale.dtype))
    return ZERO_KINDS.index("integer" if zero.dtype == torch.uint8 else "float")


def _check(
    name: str, tensor: Tensor, shape: tuple[int, ...], dtypes: tuple[torch.dtype, ...]
) -> None:
    if tensor.shape != shape or tensor.dtype not in dtypes or tensor.device.type != "cpu":
        expected = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        got = f"{tuple(tensor.shape)} {tensor.dtype} on {tensor.device}"
        raise InputError(f"{name} is {got}: expected {shape} {expected} on cpu")
    if not tensor.is_contiguous():
        raise InputError(f"{name} isn't contiguous")
