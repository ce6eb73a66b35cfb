"""What solvers ask of the native library; `library.load()` says whether there is one."""

import torch
from torch import Tensor

from tauten.core.errors import InputError
from tauten.runtime.buffers import address, floats
from tauten.runtime.library import Library


def decide_columns(
    native: Library,
    values: Tensor,
    local: Tensor,
    groups: Tensor,
    levels: tuple[Tensor, Tensor, int],
    slope: Tensor | None = None,
) -> Tensor:
    """Decide columns in order, each row by itself; see solve.h.

    Args:
        native: The library.
        values: (out, width) float32 whose rows are contiguous; become levels.
        local: (width, width) float32.
        groups: (width,) int64, of each column.
        levels: Step and low (out, groups) float32, and the largest code.
        slope: (out, width) float32 for a descent, changed; None for a sweep.
    Returns:
        (out, width) float32, errors or moves.
    Raises:
        InputError: A tensor isn't that.
    """
    step, low, top = levels
    step, low, local = step.contiguous(), low.contiguous(), local.contiguous()
    shape, cells = values.shape, (len(values), step.shape[1])
    errors, first = floats(*shape), values[:1]  # rows may lie apart from each other
    if len(values) > 1 and values.stride(0) < shape[1]:
        raise InputError(f"values of stride {values.stride()}: expected rows that don't overlap")
    status = native.handle.tauten_decide_columns(
        *(address("values", first, first.shape), len(values), values.stride(0)),
        *(address("errors", errors, shape), address("slope", slope, shape)),
        address("local", local, (shape[1], shape[1])),
        *(address("groups", groups, shape[1:], (torch.int64,)), shape[1]),
        *(address("step", step, cells), address("low", low, cells), step.shape[1], top),
        *(native.isa, torch.get_num_threads()),
    )
    if status:
        raise InputError(f"groups of columns aren't all from 0 to {step.shape[1] - 1}")
    return errors


def cell_sums(
    native: Library,
    cells: tuple[Tensor, Tensor],
    scales: tuple[Tensor, Tensor],
    middle: float,
    bits: int,
    codes: bool,
) -> Tensor:
    """Sums over groups of columns that are rounded to nearest.

    Args:
        native: The library.
        cells: Values (out, groups, size) and weights (1, groups, size), float32, contiguous.
        scales: Scale and depth, (out, groups) float32.
        middle: What codes are counted from.
        bits: Of a code.
        codes: Sum codes, else errors.
    Returns:
        (out, groups) float32, weighted squared errors; or (out, groups, 3), weighted sums of
        squared codes, codes, and codes by values.
    Raises:
        InputError: A tensor isn't that.
    """
    values, weights = cells
    scale, depth = (part.contiguous() for part in scales)
    out, groups, size = shape = values.shape
    sums = floats(out, groups, 3) if codes else floats(out, groups)
    native.handle.tauten_cells(
        *(address("values", values, shape), out, address("weights", weights, (1, groups, size))),
        *(address("scale", scale, (out, groups)), address("depth", depth, (out, groups))),
        *(groups, size, middle, 2**bits - 1, codes, address("sums", sums, sums.shape)),
        *(native.isa, torch.get_num_threads()),
    )
    return sums
