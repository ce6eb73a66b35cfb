"""Triton kernels: products of few or many tokens with a packed weight, and 8-bit activations.

Arguments that both products share:
    x: (tokens, columns), float16, bfloat16, float32, or int8 with an `x_scale`.
    x_scale: (tokens, groups) float32 of `quantize_tokens`, or None.
    codes: (rows, row_bytes) uint8 by rows. BITS: of a code.
    scale, zero: (rows, groups) of an integer grid, the zero packed, float or None. A codebook
        has no zero; no scale either, or a step for each row.
    book: Entries of a codebook, those of a row `book_step` after those of the row before; or None.
    bias: (rows,) or None.
    y: (tokens, rows).
    GROUP: Columns that share a scale, a power of two; 0 for all of a row.
    TOKENS, ROWS, COLUMNS: Powers of two, what a program computes in one step.
"""

import torch
import triton
import triton.language as tl

from tauten.runtime.gpu.tiles import load_offset, load_values

# Of products with float32; AMD's matrix units have no TF32.
PRECISION = tl.constexpr("ieee" if torch.version.hip else "tf32x3")


@triton.jit
def multiply_few(
    x, x_scale, codes, scale, zero, book, bias, y, tokens, rows, columns, cells, row_bytes, groups,
    book_step, BITS: tl.constexpr, GROUP: tl.constexpr, TOKENS: tl.constexpr, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):  # fmt: skip
    """Up to TOKENS tokens, each value read once and multiplied in float32; bound by memory."""
    GROUPS: tl.constexpr = COLUMNS // GROUP if GROUP > 0 and GROUP < COLUMNS else 1
    SPAN: tl.constexpr = COLUMNS // GROUPS
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    token = tl.arange(0, TOKENS)
    total = tl.zeros((TOKENS, ROWS), tl.float32)
    for start in range(0, columns, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        value = load_values(
            codes, book, book_step, row, rows, start, columns, cells, row_bytes, BITS, COLUMNS
        ).to(tl.float32)
        group = tl.arange(0, GROUPS)
        if GROUP > 0:
            group += start // GROUP
        if scale is not None:
            index = row.to(tl.int64)[:, None] * groups + group[None, :]
            inside = (row < rows)[:, None] & (group < groups)[None, :]
            step = tl.load(scale + index, mask=inside, other=0).to(tl.float32)
            if zero is not None or (BITS == 1 and book is None):
                offset = load_offset(zero, step, index, rows * groups, inside, BITS)
        for t in tl.static_range(TOKENS):
            inside = (column < columns) & (t < tokens)
            tile = tl.load(x + t * columns + column, mask=inside, other=0).to(tl.float32)
            part = tl.sum(tl.reshape(tile[None, :] * value, (ROWS, GROUPS, SPAN)), 2)
            if scale is not None:
                part *= step
                if zero is not None or (BITS == 1 and book is None):
                    part += tl.sum(tl.reshape(tile, (GROUPS, SPAN)), 1)[None, :] * offset
            if x_scale is not None:
                inside = (group < groups) & (t < tokens)
                part *= tl.load(x_scale + t * groups + group, mask=inside, other=0)[None, :]
            total += tl.where((token == t)[:, None], tl.sum(part, 1)[None, :], 0.0)
    _store(total, bias, y, token, tokens, row, rows)


@triton.jit
def multiply_many(
    x, x_scale, codes, scale, zero, book, bias, y, tokens, rows, columns, cells, row_bytes, groups,
    book_step, BITS: tl.constexpr, GROUP: tl.constexpr, TOKENS: tl.constexpr, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):  # fmt: skip
    """Any number of tokens on the matrix units; COLUMNS divides GROUP.

    Integer values are exact in the dtype of x, the scale multiplies their float32 (or int32) sum:
    no rounding of the weight. An x of float32 is multiplied in three passes of TF32.
    """
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    token = tl.program_id(1).to(tl.int64) * TOKENS + tl.arange(0, TOKENS)
    total = tl.zeros((TOKENS, ROWS), tl.float32)
    for start in range(0, columns, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        inside = (token < tokens)[:, None] & (column < columns)[None, :]
        tile = tl.load(x + token[:, None] * columns + column[None, :], mask=inside, other=0)
        value = load_values(
            codes, book, book_step, row, rows, start, columns, cells, row_bytes, BITS, COLUMNS
        )
        part = tl.dot(tile, tl.trans(value.to(tile.dtype)), input_precision=PRECISION)
        part = part.to(tl.float32)
        group = start // GROUP if GROUP > 0 else 0
        if scale is not None:
            index = row.to(tl.int64) * groups + group
            step = tl.load(scale + index, mask=row < rows, other=0).to(tl.float32)
            part *= step[None, :]
            if zero is not None or (BITS == 1 and book is None):
                offset = load_offset(zero, step, index, rows * groups, row < rows, BITS)
                part += tl.sum(tile.to(tl.float32), 1)[:, None] * offset[None, :]
        if x_scale is not None:
            unit = tl.load(x_scale + token * groups + group, mask=token < tokens, other=0)
            part *= unit[:, None]
        total += part
    _store(total, bias, y, token, tokens, row, rows)


@triton.jit
def _store(total, bias, y, token, tokens, row, rows):
    """Write a tile (tokens, rows) of the result, the bias added."""
    if bias is not None:
        total += tl.load(bias + row, mask=row < rows, other=0).to(tl.float32)[None, :]
    inside = (token < tokens)[:, None] & (row < rows)[None, :]
    place = token.to(tl.int64)[:, None] * rows + row[None, :]
    tl.store(y + place, total.to(y.dtype.element_ty), mask=inside)


@triton.jit
def quantize_tokens(x, codes, scale, columns, size, groups, BLOCK: tl.constexpr):
    """`reference.quantize_tokens` for each token and `size` columns; a program for each pair."""
    token, group = tl.program_id(0).to(tl.int64), tl.program_id(1)
    first = group * size
    last = tl.minimum(first + size, columns)
    largest, finite = tl.zeros((BLOCK,), tl.float32), tl.zeros((BLOCK,), tl.float32)
    for start in range(first, last, BLOCK):
        column = start + tl.arange(0, BLOCK)
        value = tl.load(x + token * columns + column, mask=column < last, other=0).to(tl.float32)
        largest = tl.maximum(largest, tl.abs(value))
        finite += value - value  # NaN from infinity and NaN, which a maximum would lose
    unit = tl.div_rn(tl.max(largest, 0), 127.0) + tl.sum(finite, 0)
    usable = unit >= 1.1754943508222875e-38  # the least normal number
    inverse = tl.div_rn(1.0, tl.where(usable, unit, 1.0))
    tl.store(scale + token * groups + group, tl.where(usable | (unit != unit), unit, 0.0))
    for start in range(first, last, BLOCK):
        column = start + tl.arange(0, BLOCK)
        value = tl.load(x + token * columns + column, mask=column < last, other=0).to(tl.float32)
        # Adding 1.5 * 2^23 leaves no bit for a fraction: halves are rounded to even.
        rounded = (value * inverse + 12582912.0) - 12582912.0
        rounded = tl.where(usable, rounded, 0.0).to(tl.int8)
        tl.store(codes + token * columns + column, rounded, mask=column < last)
