"""The native product of pruned weights as a torch op, `tauten::sparse_linear`.

As in `ops`, all tensors are checked before native code sees a pointer; it checks in turn that the
starts and what the mask keeps stay within the values.
"""

import math

import torch
from torch import Tensor

from tauten.core.errors import CorruptError, InputError
from tauten.formats.bits import packed_bytes
from tauten.formats.integer import ZERO_KINDS
from tauten.formats.interleaved import COLUMNS
from tauten.formats.packed import SCALE_DTYPES
from tauten.formats.sparse import VALUE_DTYPES
from tauten.runtime import ops
from tauten.runtime.buffers import address, check, floats

_CODES = len(VALUE_DTYPES)  # kinds of values as the library numbers them: the floats, then codes
_DAMAGED = 4

torch.library.define(
    "tauten::sparse_linear",
    "(Tensor x, Tensor mask, Tensor starts, Tensor values, Tensor? scale, Tensor? zero, "
    "Tensor? bias, int bits, int group_size, int slots, int rows) -> Tensor",
)


@torch.library.impl("tauten::sparse_linear", "CPU")
def _sparse_linear(
    x: Tensor,
    mask: Tensor,
    starts: Tensor,
    values: Tensor,
    scale: Tensor | None,
    zero: Tensor | None,
    bias: Tensor | None,
    bits: int,
    group_size: int,
    slots: int,
    rows: int,
) -> Tensor:
    """x (..., in) floating, the interleaved tensors of a SparseWeight -> (..., rows) as x.

    `bits` is 0 where the values are floats; `scale` is then None.
    """
    native, columns = ops.loaded(), ops.check_tokens(x)
    size = (bits, group_size, slots, rows, columns)
    zero_kind = _check((mask, starts, values, scale, zero), *size)
    inputs, bias = ops.as_floats(x.contiguous()), ops.as_floats(bias)
    y = floats(*x.shape[:-1], rows)
    status = native.handle.tauten_sparse_linear(
        address("x", inputs, x.shape),
        math.prod(x.shape[:-1]),
        *(tensor.data_ptr() for tensor in (mask, starts, values)),
        _CODES if bits else VALUE_DTYPES.index(values.dtype),
        slots,
        None if scale is None else scale.data_ptr(),
        None if zero is None else zero.data_ptr(),
        ZERO_KINDS.index(zero_kind),
        scale is not None and scale.dtype == torch.float16,
        bits,
        rows,
        columns,
        -(-(group_size or columns) // COLUMNS),
        address("bias", bias, (rows,)),
        address("y", y, y.shape),
        native.isa,
        torch.get_num_threads(),
    )
    if status == _DAMAGED:
        raise CorruptError("the mask and starts of a sparse weight don't match its values")
    if status:
        raise MemoryError(f"no memory for the activations of {tuple(x.shape)} x {rows} rows")
    return y.to(x.dtype)


@torch.library.register_fake("tauten::sparse_linear")  # type: ignore[untyped-decorator]
def _fake_sparse_linear(
    x: Tensor,
    mask: Tensor,
    starts: Tensor,
    values: Tensor,
    scale: Tensor | None,
    zero: Tensor | None,
    bias: Tensor | None,
    bits: int,
    group_size: int,
    slots: int,
    rows: int,
) -> Tensor:
    return x.new_empty(*x.shape[:-1], rows)


def _check(
    tensors: tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None],
    bits: int,
    group_size: int,
    slots: int,
    rows: int,
    columns: int,
) -> str:
    """Raise InputError unless these are a SparseWeight's interleaved tensors; kind of zero."""
    mask, starts, values, scale, zero = tensors
    if rows < 1 or columns < 1 or slots < 0:
        raise InputError(f"{rows} x {columns} weights in {slots} slots: expected no empty side")
    check("mask", mask, (rows, -(-columns // COLUMNS) * COLUMNS // 8), (torch.uint8,))
    check("starts", starts, (rows + 1,), (torch.int64,))
    if scale is not None:
        return _check_codes((values, scale, zero), bits, group_size, slots, rows, columns)
    check("values", values, (slots,), VALUE_DTYPES)
    if zero is not None or bits or group_size:
        raise InputError("a zero, bits or a group_size without scale: expected floats only")
    return "none"


def _check_codes(
    grid: tuple[Tensor, Tensor, Tensor | None],
    bits: int,
    group_size: int,
    slots: int,
    rows: int,
    columns: int,
) -> str:
    """Raise InputError unless these are codes (values, scale, zero) that fit; kind of zero."""
    values, scale, zero = grid
    if not 1 <= bits <= 8 or slots % 8:
        raise InputError(f"{slots} slots of {bits} bits: expected 1 to 8 bits, a multiple of 8")
    if group_size < 0 or group_size % COLUMNS:
        raise InputError(f"group_size={group_size}: expected 0 or a multiple of {COLUMNS}")
    groups = -(-columns // (group_size or columns))
    check("values", values, (packed_bytes(slots, bits),), (torch.uint8,))
    check("scale", scale, (rows, groups), SCALE_DTYPES)
    if zero is None:
        return "none"
    if zero.dtype == torch.uint8:
        check("zero", zero, (rows, packed_bytes(groups, bits)), (torch.uint8,))
        return "integer"
    check("zero", zero, (rows, groups), (scale.dtype,))
    return "float"
