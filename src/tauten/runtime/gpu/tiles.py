"""Parts of Triton kernels: tiles of codes, and the grids that they stand on.

Capital names are known when a kernel is compiled; each makes a kernel of its own.
"""

import triton
import triton.language as tl


@triton.jit
def _split(cells, HELD: tl.constexpr, WIDTH: tl.constexpr):
    """Cells of HELD bits -> codes of WIDTH bits, the lower bits of a cell first."""
    if HELD == 8 and WIDTH <= 4:
        cells = tl.interleave(cells & 15, cells >> 4)
    if HELD >= 4 and WIDTH <= 2:
        cells = tl.interleave(cells & 3, cells >> 2)
    if HELD >= 2 and WIDTH == 1:
        cells = tl.interleave(cells & 1, cells >> 1)
    return cells


@triton.jit
def _load_plane(plane, cell, inside, WIDTH: tl.constexpr, CELL: tl.constexpr):
    """Codes of one plane of `bits.pack`, WIDTH bits each, for cells of CELL columns."""
    HELD: tl.constexpr = CELL * WIDTH
    if HELD == 8:
        held = tl.load(plane + cell, mask=inside, other=0)
    else:
        byte = tl.load(plane + cell * HELD // 8, mask=inside, other=0)
        held = (byte >> (cell * HELD % 8).to(tl.uint8)) & (2**HELD - 1)
    return _split(held, HELD, WIDTH).to(tl.int32)


@triton.jit
def load_codes(
    codes, row, rows, start, columns, cells, row_bytes, BITS: tl.constexpr, COLUMNS: tl.constexpr
):
    """Codes packed by rows, of `row` (n,) and COLUMNS columns from `start` on -> (n, COLUMNS).

    A cell is the columns that share a byte of the widest plane: the bytes of a tile are read in
    order, those of narrower planes by each of the few cells that share one.
    """
    CELL: tl.constexpr = 1 if BITS >= 8 else 2 if BITS >= 4 else 4 if BITS >= 2 else 8
    cell = start // CELL + tl.arange(0, COLUMNS // CELL)
    inside = (row < rows)[:, None] & (cell < cells)[None, :]
    plane = codes + row.to(tl.int64)[:, None] * row_bytes
    found = tl.zeros((row.shape[0], COLUMNS), tl.int32)
    for step in tl.static_range(4):
        if BITS & (8 >> step):
            part = _load_plane(plane, cell[None, :], inside, 8 >> step, CELL)
            found |= part << (BITS - BITS % (16 >> step))
            plane += (columns * (8 >> step) + 7) // 8
    return found


@triton.jit
def _load_zero(zero, index, count, inside, BITS: tl.constexpr):
    """Codes of zero, packed as one row of `count`."""
    found = tl.zeros(index.shape, tl.int32)
    for step in tl.static_range(4):
        if BITS & (8 >> step):
            bit = index * (8 >> step)
            byte = tl.load(zero + bit // 8, mask=inside, other=0).to(tl.int32)
            code = (byte >> (bit % 8).to(tl.int32)) & (2 ** (8 >> step) - 1)
            found |= code << (BITS - BITS % (16 >> step))
            zero += (count * (8 >> step) + 7) // 8
    return found


@triton.jit
def load_values(
    codes, book, book_step, row, rows, start, columns, cells, row_bytes, BITS: tl.constexpr,
    COLUMNS: tl.constexpr,
):  # fmt: skip
    """What codes stand for before scale and offset, (n, COLUMNS).

    On an integer grid that is the code shifted to fit int8, exact in every dtype; `load_offset`
    makes good for the shift. With a codebook it is the entry.
    """
    found = load_codes(codes, row, rows, start, columns, cells, row_bytes, BITS, COLUMNS)
    if book is not None:
        place = row.to(tl.int64)[:, None] * book_step + found
        found = tl.load(book + place, mask=(row < rows)[:, None], other=0)
    else:
        if BITS == 8:
            found ^= 128  # stored as two's complement
        if BITS > 1:
            found -= 2 ** (BITS - 1)
    return found


@triton.jit
def load_offset(zero, scale, index, count, inside, BITS: tl.constexpr):
    """What is added to scale * value of `load_values`, in the shape of `scale`."""
    SHIFT: tl.constexpr = 2 ** (BITS - 1) if BITS > 1 else 0
    if zero is None:  # of 1 bit, whose levels are -0.5 and 0.5
        offset = -0.5 * scale
    elif zero.dtype.element_ty == tl.uint8:
        offset = (SHIFT - _load_zero(zero, index, count, inside, BITS)).to(tl.float32) * scale
    else:
        offset = tl.load(zero + index, mask=inside, other=0).to(tl.float32) + SHIFT * scale
    return offset
