"""`tauten::conv`: a convolution as the native library's product, known to compilers.

Every output position is a token of the product; what it sees of the input is gathered a batch of
positions at a time, so that no unfolded copy of the input is made.
"""

import ctypes
import functools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from tauten.core.errors import InputError
from tauten.formats.integer import ZERO_KINDS
from tauten.formats.interleaved import COLUMNS
from tauten.runtime import ops
from tauten.runtime.buffers import address, floats

_UNFIT = 5

torch.library.define(
    "tauten::conv",
    "(Tensor x, Tensor codes, Tensor scale, Tensor? zero, Tensor? table, Tensor? bias, int bits, "
    "int group_size, int rows, int[] kernel, int[] stride, int[] dilation, int[] edges, bool int8, "
    "Tensor? step=None) -> Tensor",
)


@torch.library.impl("tauten::conv", "CPU")
def _conv(
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    zero: Tensor | None,
    table: Tensor | None,
    bias: Tensor | None,
    bits: int,
    group_size: int,
    rows: int,
    kernel: list[int],
    stride: list[int],
    dilation: list[int],
    edges: list[int],
    int8: bool,
    step: Tensor | None = None,
) -> Tensor:
    """x (batch, in, *size) floating -> (batch, rows, *positions) as x.

    `edges` are the zeros before and after each dimension of x, from the last one on, as
    `torch.nn.functional.pad` takes them.

    The tensors are those of an interleaved IntegerWeight, or of a CodebookWeight: its `step` is
    `scale`, and `table` isn't None. A fixed `step` () is the one that int8 rounds all by.
    """
    native = ops.loaded()
    check_image(x, kernel)
    steps = tuple(kernel), tuple(stride), tuple(dilation), tuple(edges)
    numbers, size = _geometry(tuple(x.shape[2:]), *steps)
    columns = x.shape[1] * math.prod(kernel)
    kind = "none"
    if table is None:
        kind = ops.check_integer((codes, scale, zero), bits, group_size, rows, columns)
    else:
        ops.check_codebook((codes, table, scale), bits, rows, columns)
    image, bias, step = map(ops.as_floats, (x.contiguous(), bias, step))
    y = floats(x.shape[0], rows, *size)
    status = native.handle.tauten_conv(
        *(address("x", image, x.shape), *x.shape[:2], numbers),
        *(None if part is None else part.data_ptr() for part in (codes, scale, zero, table)),
        *(ZERO_KINDS.index(kind), scale.dtype == torch.float16, bits),
        *(rows, columns, -(-(group_size or columns) // COLUMNS)),
        *(address("bias", bias, (rows,)), address("y", y, y.shape), address("step", step, ())),
        *(int8 or table is not None, native.isa, torch.get_num_threads()),
    )
    if status == _UNFIT:
        raise InputError(
            f"kernel {kernel}, stride {stride}, dilation {dilation}, edges {edges} on "
            f"{tuple(x.shape)}: the padded image has more values than can be counted"
        )
    if status:
        raise MemoryError(f"no memory to convolve {tuple(x.shape)} with {rows} rows")
    return y.to(x.dtype)


@torch.library.register_fake("tauten::conv")  # type: ignore[untyped-decorator]
def _fake_conv(
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    zero: Tensor | None,
    table: Tensor | None,
    bias: Tensor | None,
    bits: int,
    group_size: int,
    rows: int,
    kernel: list[int],
    stride: list[int],
    dilation: list[int],
    edges: list[int],
    int8: bool,
    step: Tensor | None = None,
) -> Tensor:
    check_image(x, kernel)
    return x.new_empty(x.shape[0], rows, *output_size(x.shape[2:], kernel, stride, dilation, edges))


def check_image(x: Tensor, kernel: Sequence[int]) -> None:
    """Raise InputError unless x is floating and has a kernel's dimensions, and two before."""
    if x.dim() != 2 + len(kernel) or not x.is_floating_point():
        expected = f"(batch, in, *size) floating with {len(kernel)} sizes"
        raise InputError(f"x of {x.dim()} dimensions and {x.dtype}: expected {expected}")


def output_size(
    size: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int],
    edges: Sequence[int],
) -> tuple[int, ...]:
    """Positions of a kernel in an image of some size with `edges` of padding, a dimension each.

    Raises:
        InputError: The settings aren't those of one convolution, or the image is too small.
    """
    steps = (*kernel, *stride, *dilation)
    if not len(kernel) == len(stride) == len(dilation) or not steps or min(steps) < 1:
        raise InputError(f"kernel {kernel}, stride {stride}, dilation {dilation}: expected >= 1")
    if len(edges) != 2 * len(kernel) or min(edges) < 0:
        raise InputError(f"edges {edges}: expected {2 * len(kernel)} numbers from 0 on")
    ends = zip(edges[-2::-2], edges[::-2], strict=True)
    padded = [before + n + after for n, (before, after) in zip(size, ends, strict=True)]
    sizes = zip(padded, kernel, stride, dilation, strict=True)
    found = tuple((n - d * (k - 1) - 1) // s + 1 for n, k, s, d in sizes)
    if min(found) < 1:
        raise InputError(f"an image of {tuple(padded)} is smaller than the kernel {tuple(kernel)}")
    return found


@functools.lru_cache
def _geometry(
    size: tuple[int, ...],
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    dilation: tuple[int, ...],
    edges: tuple[int, ...],
) -> tuple[ctypes.Array[ctypes.c_int64], tuple[int, ...]]:
    """The numbers of a `Geometry` in conv.cpp, and the size of the output."""
    positions = output_size(size, kernel, stride, dilation, edges)
    if len(kernel) > 3:
        raise InputError(f"kernel {kernel}: expected 1 to 3 dimensions")
    # A step that is never taken may be of any length; the library lays an image out by steps.
    stride = tuple(s if n > 1 else 1 for s, n in zip(stride, positions, strict=True))
    dilation = tuple(d if k > 1 else 1 for d, k in zip(dilation, kernel, strict=True))
    numbers: list[int] = []
    rows = (size, edges[-2::-2], edges[::-2], kernel, stride, dilation)
    for row, absent in zip(rows, (1, 0, 0, 1, 1, 1), strict=True):
        numbers += [absent] * (3 - len(row)) + list(row)
    return (ctypes.c_int64 * len(numbers))(*numbers), positions
