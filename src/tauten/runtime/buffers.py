"""Buffers that native code reads and writes. Nothing of torch's defaults reaches it: each buffer's
dtype, shape, device and layout are named here, and checked where its address is taken.
"""

import torch
from torch import Tensor

from tauten.core.dtypes import dtype_name
from tauten.core.errors import InputError

CPU = torch.device("cpu")
FLOAT = (torch.float32,)


def floats(*shape: int) -> Tensor:
    """A float32 buffer on the CPU for native code to fill.

    Raises:
        MemoryError: There is no room for it.
    """
    try:
        return torch.empty(shape, dtype=torch.float32, device=CPU)
    except RuntimeError as error:
        raise MemoryError(f"no memory for outputs of {shape}") from error


def address(
    name: str,
    tensor: Tensor | None,
    shape: tuple[int, ...],
    dtypes: tuple[torch.dtype, ...] = FLOAT,
) -> int | None:
    """Where a tensor lies, once `check` has found it right; None for None.

    The caller keeps the tensor for as long as native code uses the address.
    """
    if tensor is None:
        return None
    check(name, tensor, shape, dtypes)
    return tensor.data_ptr()


def check(
    name: str,
    tensor: Tensor,
    shape: tuple[int, ...],
    dtypes: tuple[torch.dtype, ...],
    device: torch.device = CPU,
) -> None:
    """Raise InputError unless a tensor is of this shape and one of these dtypes, as it lies."""
    if tensor.shape != shape or tensor.dtype not in dtypes or tensor.device != device:
        expected = " or ".join(map(dtype_name, dtypes))
        got = f"{tuple(tensor.shape)} {tensor.dtype} on {tensor.device}"
        raise InputError(f"{name} is {got}: expected {tuple(shape)} {expected} on {device}")
    place = tensor.data_ptr()
    if not tensor.is_contiguous() or place % tensor.itemsize or not (place or not tensor.numel()):
        raise InputError(f"{name} isn't contiguous and aligned in memory: pass a clone of it")
