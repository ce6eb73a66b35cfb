"""The ops `tauten::...` on a GPU. Triton is imported by the first product, not with this file."""

import functools
import importlib.util

import torch
from torch import Tensor

from tauten.core.errors import InputError
from tauten.core.printing import logger
from tauten.formats.codebook import CodebookWeight
from tauten.formats.integer import IntegerWeight
from tauten.formats.packed import SCALE_DTYPES, PackedWeight
from tauten.formats.ternary import TernaryWeight
from tauten.runtime import book_ops  # noqa: F401 (defines an op)

DTYPES = (torch.float16, torch.bfloat16, torch.float32)  # of activations
TRITON = importlib.util.find_spec("triton") is not None
NOTICE = (
    "Triton isn't installed: packed layers on this GPU run in plain torch, much slower; "
    "`pip install triton` (it comes with torch's CUDA wheels for Linux)"
)


def serves(x: Tensor, weight: PackedWeight) -> bool:
    """Whether the ops take a product of x with this weight, which lies on its GPU by rows."""
    if not isinstance(weight, IntegerWeight | CodebookWeight) or weight.interleaved:
        return False
    if x.device.type != "cuda" or weight.codes.device != x.device:
        return False
    if not takes(weight, x.dtype):
        return False
    if not TRITON:
        _give_notice()
    return TRITON


def takes(weight: PackedWeight, dtype: torch.dtype) -> bool:
    """Whether a GPU that has Triton multiplies activations of a dtype by a weight, once there."""
    if isinstance(weight, TernaryWeight):  # five trits a byte, which these kernels do not unpack
        return False
    if isinstance(weight, IntegerWeight):
        fits = takes_group(weight.group_size) and weight.scale.dtype in SCALE_DTYPES
    else:
        fits = isinstance(weight, CodebookWeight) and weight.codebook.dtype in SCALE_DTYPES
    return fits and dtype in DTYPES


def takes_group(size: int) -> bool:
    """Whether the kernels take groups of this many columns: a power of two, or whole rows."""
    return size == 0 or (size >= 32 and size & (size - 1) == 0)


@functools.cache
def _give_notice() -> None:
    logger(__name__).warning(NOTICE)


@torch.library.impl("tauten::integer_linear", "CUDA")
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
    if step is not None:
        raise InputError("on a GPU round x by its step before; this op rounds each token by itself")
    from tauten.runtime.gpu import launch

    return launch.integer_linear(x, codes, scale, zero, bias, bits, group_size, rows, int8)


@torch.library.impl("tauten::codebook_linear", "CUDA")
def _codebook_linear(
    x: Tensor, codes: Tensor, table: Tensor, step: Tensor, bias: Tensor | None, bits: int, rows: int
) -> Tensor:
    from tauten.runtime.gpu import launch

    return launch.codebook_linear(x, codes, table, step, bias, bits, rows)


@torch.library.impl("tauten::codebook_linear_float", "CUDA")
def _codebook_linear_float(
    x: Tensor, codes: Tensor, entries: Tensor, bias: Tensor | None, bits: int, rows: int
) -> Tensor:
    from tauten.runtime.gpu import launch

    return launch.codebook_linear(x, codes, entries, None, bias, bits, rows)
