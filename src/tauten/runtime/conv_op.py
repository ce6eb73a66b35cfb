"""`tauten::conv`: a convolution as the native library's product, known to compilers.

Every output position is a token of the product; what it sees of the input is gathered a batch of
positions at a time, so that no unfolded copy of the input is made.
"""

import math

import torch
from torch import Tensor

from tauten.core.errors import InputError
from tauten.formats.integer import ZERO_KINDS
from tauten.formats.interleaved import COLUMNS
from tauten.runtime import ops

torch.library.define(
    "tauten::conv",
    "(Tensor x, Tensor codes, Tensor scale, Tensor? zero, Tensor? table, Tensor? bias, int bits, "
    "int group_size, int rows, int[] kernel, int[] stride, int[] dilation, bool int8, "
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
    int8: bool,
    step: Tensor | None = None,
) -> Tensor:
    """x (batch, in, *size) floating, padded already -> (batch, rows, *positions) as x.

    The tensors are those of an interleaved IntegerWeight, or of a CodebookWeight: its `step` is
    `scale`, and `table` isn't None. A fixed `step` () is the one that int8 rounds all by.
    """
    native = ops.loaded()
    size = output_size(x, kernel, stride, dilation)
    columns = x.shape[1] * math.prod(kernel)
    kind = "none"
    if table is None:
        kind = ops.check_integer((codes, scale, zero), bits, group_size, rows, columns)
    else:
        ops.check_codebook((codes, table, scale), bits, rows, columns)
    if bias is not None:
        ops.check("bias", bias, (rows,), (bias.dtype,))
        bias = bias.float()
    step = ops.checked_step(step)
    image = x.float().contiguous()
    starts, offsets = _tables(image, size, kernel, stride, dilation)
    y = torch.empty(len(x), rows, *size)
    status = native.handle.tauten_conv(
        *(image.data_ptr(), starts.data_ptr(), offsets.data_ptr()),
        *(starts.numel(), math.prod(size)),
        *(None if part is None else part.data_ptr() for part in (codes, scale, zero, table)),
        *(ZERO_KINDS.index(kind), scale.dtype == torch.float16, bits),
        *(rows, columns, -(-(group_size or columns) // COLUMNS)),
        *(None if bias is None else bias.data_ptr(), y.data_ptr()),
        None if step is None else step.data_ptr(),
        *(int8 or table is not None, native.isa, torch.get_num_threads()),
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
    int8: bool,
    step: Tensor | None = None,
) -> Tensor:
    return x.new_empty(len(x), rows, *output_size(x, kernel, stride, dilation))


def output_size(
    x: Tensor, kernel: list[int], stride: list[int], dilation: list[int]
) -> tuple[int, ...]:
    """Positions of a kernel in x (batch, in, *size), a dimension each.

    Raises:
        InputError: x isn't floating, has another number of dimensions, or is below the kernel.
    """
    steps = (*kernel, *stride, *dilation)
    if not len(kernel) == len(stride) == len(dilation) or not steps or min(steps) < 1:
        raise InputError(f"kernel {kernel}, stride {stride}, dilation {dilation}: expected >= 1")
    if x.dim() != 2 + len(kernel) or not x.is_floating_point():
        expected = f"(batch, in, *size) floating with {len(kernel)} sizes"
        raise InputError(f"x of {x.dim()} dimensions and {x.dtype}: expected {expected}")
    sizes = zip(x.shape[2:], kernel, stride, dilation, strict=True)
    found = tuple((n - d * (k - 1) - 1) // s + 1 for n, k, s, d in sizes)
    if min(found) < 1:
        raise InputError(f"x of {tuple(x.shape)} after padding is smaller than the kernel {kernel}")
    return found


def _tables(
    image: Tensor, size: tuple[int, ...], kernel: list[int], stride: list[int], dilation: list[int]
) -> tuple[Tensor, Tensor]:
    """Where in the image each position starts, and how far from there each column's input lies."""
    steps = image.stride()
    starts = _grid((len(image), *size), (steps[0], *_products(steps[2:], stride)))
    offsets = _grid((image.shape[1], *kernel), (steps[1], *_products(steps[2:], dilation)))
    return starts, offsets


def _products(first: tuple[int, ...], second: list[int]) -> list[int]:
    return [a * b for a, b in zip(first, second, strict=True)]


def _grid(counts: tuple[int, ...], steps: tuple[int, ...]) -> Tensor:
    """Flattened sums of multiples of steps: i * steps[0] + j * steps[1] + ..."""
    total = torch.zeros((), dtype=torch.int64)
    for count, step in zip(counts, steps, strict=True):
        total = total[..., None] + torch.arange(count) * step
    return total.flatten()
