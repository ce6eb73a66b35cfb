"""The native float product of codebook weights as a torch op, `tauten::codebook_linear_float`.

As in `ops`, all tensors are checked before native code sees a pointer.
"""

import math

import torch
from torch import Tensor

from tauten.formats.interleaved import COLUMNS, ROWS
from tauten.runtime import ops
from tauten.runtime.buffers import FLOAT, address, check, floats

torch.library.define(
    "tauten::codebook_linear_float",
    "(Tensor x, Tensor codes, Tensor entries, Tensor? bias, int bits, int rows) -> Tensor",
)


@torch.library.impl("tauten::codebook_linear_float", "CPU")
def _codebook_linear_float(
    x: Tensor, codes: Tensor, entries: Tensor, bias: Tensor | None, bits: int, rows: int
) -> Tensor:
    """x (..., in) floating, the interleaved tensors of a CodebookWeight -> (..., rows) as x."""
    native, columns = ops.loaded(), ops.check_tokens(x)
    ops.check_sizes(bits, ops.MAX_BOOK_BITS, 0, rows, columns)
    blocks, chunks = -(-rows // ROWS), -(-columns // COLUMNS)
    shared = check_entries(entries, rows)
    inputs, bias = ops.as_floats(x.contiguous()), ops.as_floats(bias)
    y = floats(*x.shape[:-1], rows)
    status = native.handle.tauten_book_linear(
        address("x", inputs, x.shape),
        math.prod(x.shape[:-1]),
        address("codes", codes, (blocks, chunks, bits, 64), (torch.uint8,)),
        entries.data_ptr(),
        shared,
        bits,
        rows,
        columns,
        address("bias", bias, (rows,)),
        address("y", y, y.shape),
        native.isa,
        torch.get_num_threads(),
    )
    if status:
        raise MemoryError(f"no memory for the activations of {tuple(x.shape)} x {rows} rows")
    return y.to(x.dtype)


@torch.library.register_fake("tauten::codebook_linear_float")  # type: ignore[untyped-decorator]
def _fake_codebook_linear_float(
    x: Tensor, codes: Tensor, entries: Tensor, bias: Tensor | None, bits: int, rows: int
) -> Tensor:
    return x.new_empty(*x.shape[:-1], rows)


def check_entries(entries: Tensor, rows: int) -> bool:
    """Raise InputError unless these are a CodebookWeight's `entries`; whether rows share them."""
    shared = entries.dim() == 1
    size = 2**ops.MAX_BOOK_BITS
    shape = (size,) if shared else (-(-rows // ROWS), ROWS, size)
    check("entries", entries, shape, FLOAT)
    return shared
