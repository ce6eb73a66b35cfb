"""Launching the Triton kernels on tensors that have been checked."""

from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from tauten.core.errors import InputError
from tauten.formats.bits import packed_bytes, planes
from tauten.formats.packed import SCALE_DTYPES
from tauten.runtime.buffers import check
from tauten.runtime.gpu import products
from tauten.runtime.gpu.ops import DTYPES, takes_group

FEW_TOKENS = 4  # up to here reading the weight costs more than multiplying without matrix units


@dataclass(frozen=True)
class Tile:
    """What a program computes in one step, and with how many warps and loads in flight."""

    tokens: int
    rows: int
    columns: int
    warps: int
    stages: int


@dataclass(frozen=True)
class Weight:
    """Tensors of a packed weight by rows, as the kernels take them."""

    codes: Tensor
    scale: Tensor | None
    zero: Tensor | None
    book: Tensor | None
    bits: int
    group_size: int
    rows: int


def choose_tile(tokens: int, columns: int, bits: int, group_size: int, dtype: torch.dtype) -> Tile:
    """Tile for a product: 16 bytes of codes a thread for few tokens, full matrix units for many.

    Between them programs are narrow and load far ahead, since memory still is what they wait for.
    """
    if tokens <= FEW_TOKENS:
        widest = 1024 if bits <= 4 else 512
        width = max(32, min(widest, triton.next_power_of_2(columns)))
        return Tile(triton.next_power_of_2(tokens), 8 if bits <= 2 else 4, width, 4, 1)
    if tokens <= 16:
        return Tile(16, 16, min(group_size or 128, 128), 2, 5)
    width = min(group_size or 64, 64)
    if tokens <= 64 or dtype == torch.float32:  # of which a larger tile wouldn't fit everywhere
        return Tile(64, 64, width, 4, 3)
    return Tile(128, 64, width, 8, 3)


def integer_linear(
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
    """x (..., in), the tensors of an IntegerWeight by rows -> (..., rows) in the dtype of x.

    With `int8` a token is rounded per group of columns; above `FEW_TOKENS` the products are
    summed in int32, below in float32.

    Raises:
        InputError: A tensor has another dtype, shape or device than the sizes ask for.
    """
    columns = _check_sizes(x, bits, rows)
    if not takes_group(group_size):
        expected = "a power of two from 32 on, or 0 for whole rows"
        raise InputError(f"group_size={group_size}: expected {expected}")
    cells = (rows, -(-columns // (group_size or columns)))
    check("codes", codes, (rows, packed_bytes(columns, bits)), (torch.uint8,), x.device)
    check("scale", scale, cells, SCALE_DTYPES, x.device)
    if zero is not None and zero.is_floating_point():
        check("zero", zero, cells, (scale.dtype,), x.device)
    elif zero is not None:
        packed = (packed_bytes(cells[0] * cells[1], bits),)
        check("zero", zero, packed, (torch.uint8,), x.device)
    return _multiply(x, Weight(codes, scale, zero, None, bits, group_size, rows), bias, int8)


def codebook_linear(
    x: Tensor,
    codes: Tensor,
    table: Tensor,
    step: Tensor | None,
    bias: Tensor | None,
    bits: int,
    rows: int,
) -> Tensor:
    """x (..., in), the tensors of a CodebookWeight by rows -> (..., rows) in the dtype of x.

    Args:
        table: (books, 2**bits) entries: floating, or int8 with a step.
        step: (books, 1) float32, what a unit of the table stands for; tokens are then rounded to
            8 bits. None keeps them.

    Raises:
        InputError: A tensor has another dtype, shape or device than the sizes ask for.
    """
    columns = _check_sizes(x, bits, rows)
    books = len(table) if len(table) == rows else 1
    check("codes", codes, (rows, packed_bytes(columns, bits)), (torch.uint8,), x.device)
    entries = SCALE_DTYPES if step is None else (torch.int8,)
    check("table", table, (books, 2**bits), entries, x.device)
    if step is not None:
        check("step", step, (books, 1), (torch.float32,), x.device)
        step = step.expand(rows, 1).contiguous()
    return _multiply(x, Weight(codes, step, None, table, bits, 0, rows), bias, step is not None)


def _check_sizes(x: Tensor, bits: int, rows: int) -> int:
    """Raise InputError unless x and the sizes make a product; columns of x."""
    if x.dim() == 0 or x.dtype not in DTYPES:
        expected = "(..., in) float16, bfloat16 or float32"
        raise InputError(f"x of {x.dim()} dimensions and {x.dtype}: expected {expected}")
    if not 1 <= bits <= 8 or rows < 1 or x.shape[-1] < 1:
        sizes = f"{rows} x {x.shape[-1]} at {bits} bits"
        raise InputError(f"a weight of {sizes}: expected 1 to 8 bits, no empty side")
    return x.shape[-1]


def _multiply(x: Tensor, weight: Weight, bias: Tensor | None, int8: bool) -> Tensor:
    """x (..., columns) by a checked weight."""
    rows, columns = weight.rows, x.shape[-1]
    if bias is not None:
        check("bias", bias, (rows,), (*DTYPES, torch.float64), x.device)
    y = x.new_empty(*x.shape[:-1], rows)
    tokens = y.numel() // rows
    if tokens == 0:
        return y
    tile = choose_tile(tokens, columns, weight.bits, weight.group_size, x.dtype)
    groups = -(-columns // (weight.group_size or columns))
    few = tokens <= FEW_TOKENS
    kernel: Any = products.multiply_few if few else products.multiply_many
    per_token = () if few else (triton.cdiv(tokens, tile.tokens),)
    book = weight.book
    cells = packed_bytes(columns, planes(weight.bits)[0])
    inputs = x.reshape(tokens, columns).contiguous()
    with torch.cuda.device_of(x):
        unit = None
        if int8:
            inputs, unit = quantize_tokens(inputs, weight.group_size or columns)
        kernel[(triton.cdiv(rows, tile.rows), *per_token)](
            *(inputs, unit, weight.codes, weight.scale, weight.zero, book, bias, y),
            *(tokens, rows, columns, cells, weight.codes.shape[1], groups),
            0 if book is None or len(book) == 1 else book.shape[1],
            BITS=weight.bits,
            GROUP=weight.group_size,
            TOKENS=tile.tokens,
            ROWS=tile.rows,
            COLUMNS=tile.columns,
            num_warps=tile.warps,
            num_stages=tile.stages,
        )
    return y


def quantize_tokens(x: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """`reference.quantize_tokens` per `size` columns of each token.

    Args:
        x: (tokens, columns) floating, contiguous.
        size: Columns that share a scale.
    Returns:
        (tokens, columns) int8, and the scales (tokens, groups) float32.
    """
    tokens, columns = x.shape
    groups = -(-columns // size)
    codes = torch.empty_like(x, dtype=torch.int8)
    scale = x.new_empty(tokens, groups, dtype=torch.float32)
    kernel: Any = products.quantize_tokens
    block = min(triton.next_power_of_2(size), 1024)
    kernel[(tokens, groups)](
        x, codes, scale, columns, size, groups, BLOCK=block, num_warps=max(1, block // 256)
    )
    return codes, scale
