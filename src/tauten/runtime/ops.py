"""The native library's functions as torch ops, `tauten::...`, known to compilers by fake kernels.

Each op checks every dtype, shape and length before native code sees a pointer: whatever the
tensors hold, and whatever torch's defaults are, nothing outside of them is read or written.
"""

import math

import torch
from torch import Tensor

from tauten.core.errors import InputError
from tauten.formats.integer import ZERO_KINDS
from tauten.formats.interleaved import COLUMNS, ROWS
from tauten.formats.packed import SCALE_DTYPES
from tauten.runtime import library
from tauten.runtime.buffers import address, check, floats

# Above this many columns that share a scale, a sum of products of bytes can leave int32.
MAX_GROUP = 1 << 16
MAX_BOOK_BITS = 4  # a vector instruction looks into tables of 16

torch.library.define(
    "tauten::integer_linear",
    "(Tensor x, Tensor codes, Tensor scale, Tensor? zero, Tensor? bias, int bits, "
    "int group_size, int rows, bool int8, Tensor? step=None) -> Tensor",
)
torch.library.define(
    "tauten::integer_rows",
    "(Tensor index, Tensor codes, Tensor scale, Tensor? zero, int bits, int group_size, "
    "int rows, int columns) -> Tensor",
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
    step: Tensor | None = None,
) -> Tensor:
    """x (..., in) floating, the interleaved tensors of an IntegerWeight -> (..., rows) as x.

    A fixed `step` () is the one that int8 rounds all tokens by.
    """
    columns = check_tokens(x)
    kind = check_integer((codes, scale, zero), bits, group_size, rows, columns)
    return _call(x, bias, (codes, scale, zero, None), kind, bits, rows, group_size, int8, step)


@torch.library.impl("tauten::codebook_linear", "CPU")
def _codebook_linear(
    x: Tensor, codes: Tensor, table: Tensor, step: Tensor, bias: Tensor | None, bits: int, rows: int
) -> Tensor:
    """x (..., in) floating, the interleaved tensors of a CodebookWeight -> (..., rows) as x."""
    check_codebook((codes, table, step), bits, rows, check_tokens(x))
    return _call(x, bias, (codes, step, None, table), "none", bits, rows, 0, True)


@torch.library.impl("tauten::integer_rows", "CPU")
def _integer_rows(
    index: Tensor,
    codes: Tensor,
    scale: Tensor,
    zero: Tensor | None,
    bits: int,
    group_size: int,
    rows: int,
    columns: int,
) -> Tensor:
    """index (...) integer, the interleaved tensors of an IntegerWeight -> (..., columns)."""
    native = loaded()
    if index.dtype not in (torch.int64, torch.int32):
        raise InputError(f"index is {index.dtype}: expected int64 or int32")
    kind = check_integer((codes, scale, zero), bits, group_size, rows, columns)
    index = index.long().contiguous()
    y = floats(*index.shape, columns)
    status = native.handle.tauten_rows(
        address("index", index, index.shape, (torch.int64,)),
        index.numel(),
        codes.data_ptr(),
        scale.data_ptr(),
        None if zero is None else zero.data_ptr(),
        ZERO_KINDS.index(kind),
        scale.dtype == torch.float16,
        bits,
        rows,
        columns,
        -(-(group_size or columns) // COLUMNS),
        address("y", y, y.shape),
        torch.get_num_threads(),
    )
    if status:
        raise IndexError(f"an index is outside of the weight's {rows} rows")
    return y


@torch.library.register_fake("tauten::integer_rows")  # type: ignore[untyped-decorator]
def _fake_integer_rows(
    index: Tensor,
    codes: Tensor,
    scale: Tensor,
    zero: Tensor | None,
    bits: int,
    group_size: int,
    rows: int,
    columns: int,
) -> Tensor:
    return scale.new_empty(*index.shape, columns, dtype=torch.float32)


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
    step: Tensor | None = None,
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
    step: Tensor | None = None,
) -> Tensor:
    """The library's product, on tensors (codes, scale, zero, book) that have been checked."""
    native = loaded()
    inputs, bias, step = as_floats(x.contiguous()), as_floats(bias), as_floats(step)
    y, columns = floats(*x.shape[:-1], rows), x.shape[-1]
    scale = tensors[1]
    status = native.handle.tauten_linear(
        address("x", inputs, x.shape),
        math.prod(x.shape[:-1]),
        *(None if tensor is None else tensor.data_ptr() for tensor in tensors),
        ZERO_KINDS.index(zero_kind),
        scale is not None and scale.dtype == torch.float16,
        bits,
        rows,
        columns,
        -(-(group_size or columns) // COLUMNS),
        address("bias", bias, (rows,)),
        address("y", y, y.shape),
        address("step", step, ()),
        int8,
        native.isa,
        torch.get_num_threads(),
    )
    if status:
        raise MemoryError(f"no memory for the activations of {tuple(x.shape)} x {rows} rows")
    return y.to(x.dtype)


def loaded() -> library.Library:
    """The native library; InputError where it isn't built."""
    native = library.load()
    if native is None:
        raise InputError("this op needs tauten's native library, which isn't built")
    return native


def as_floats(tensor: Tensor | None) -> Tensor | None:
    """A tensor in float32, as the library takes what isn't packed."""
    return None if tensor is None else tensor.float()


def check_tokens(x: Tensor) -> int:
    """Raise InputError unless x is floating and has columns; how many."""
    if x.dim() == 0 or not x.is_floating_point():
        raise InputError(f"x of {x.dim()} dimensions and {x.dtype}: expected (..., in) floating")
    return x.shape[-1]


def check_integer(
    grid: tuple[Tensor, Tensor, Tensor | None], bits: int, group_size: int, rows: int, columns: int
) -> str:
    """Raise InputError unless these are an IntegerWeight's interleaved tensors; kind of zero."""
    codes, scale, zero = grid
    check_sizes(bits, 8, group_size, rows, columns)
    blocks, chunks = -(-rows // ROWS), -(-columns // COLUMNS)
    cells = (blocks, -(-columns // (group_size or columns)), ROWS)
    check("codes", codes, (blocks, chunks, bits, 64), (torch.uint8,))
    check("scale", scale, cells, SCALE_DTYPES)
    if zero is None:
        return "none"
    check("zero", zero, cells, (torch.uint8, scale.dtype))
    return "integer" if zero.dtype == torch.uint8 else "float"


def check_codebook(book: tuple[Tensor, Tensor, Tensor], bits: int, rows: int, columns: int) -> None:
    """Raise InputError unless these are a CodebookWeight's interleaved codes, table and step."""
    codes, table, step = book
    check_sizes(bits, MAX_BOOK_BITS, 0, rows, columns)
    blocks, chunks = -(-rows // ROWS), -(-columns // COLUMNS)
    check("codes", codes, (blocks, chunks, bits, 64), (torch.uint8,))
    check("table", table, (blocks, 4, 4, 16), (torch.int8,))
    check("step", step, (blocks, 1, ROWS), (torch.float32,))


def check_sizes(bits: int, most_bits: int, group_size: int, rows: int, columns: int) -> None:
    """Raise InputError unless the sizes make a weight."""
    if not 1 <= bits <= most_bits or rows < 1 or columns < 1:
        sizes = f"{rows} x {columns} at {bits} bits"
        raise InputError(f"a weight of {sizes}: expected 1 to {most_bits} bits, no empty side")
    if group_size < 0 or group_size % COLUMNS or (group_size or columns) > MAX_GROUP:
        expected = f"a multiple of {COLUMNS} up to {MAX_GROUP}, or 0 for whole rows up to that"
        raise InputError(f"group_size={group_size}: expected {expected}")
