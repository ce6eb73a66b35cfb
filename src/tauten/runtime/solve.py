"""What solvers ask of the native library; `library.load()` says whether there is one."""

import torch
from torch import Tensor

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
    """
    assert values.stride(1) == 1 and (slope is None or slope.is_contiguous())
    step, low, top = levels
    step, low, local = step.contiguous(), low.contiguous(), local.contiguous()
    errors = torch.empty(values.shape)
    native.handle.tauten_decide_columns(
        *(values.data_ptr(), len(values), values.stride(0), errors.data_ptr()),
        None if slope is None else slope.data_ptr(),
        *(local.data_ptr(), groups.data_ptr(), values.shape[1]),
        *(step.data_ptr(), low.data_ptr(), step.shape[1], top),
        *(native.isa, torch.get_num_threads()),
    )
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
    """
    values, weights = cells
    assert values.is_contiguous() and weights.is_contiguous()
    scale, depth = (part.contiguous() for part in scales)
    out, groups, size = values.shape
    sums = torch.empty(out, groups, 3) if codes else torch.empty(out, groups)
    native.handle.tauten_cells(
        *(values.data_ptr(), out, weights.data_ptr(), scale.data_ptr(), depth.data_ptr()),
        *(groups, size, middle, 2**bits - 1, codes, sums.data_ptr()),
        *(native.isa, torch.get_num_threads()),
    )
    return sums
