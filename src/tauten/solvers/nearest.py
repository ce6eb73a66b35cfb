"""Encode a weight by rounding to the nearest level, a few rows at a time."""

import torch
from torch import Tensor

from tauten.formats.integer import IntegerWeight, round_to_grid
from tauten.solvers.grid import fit_grid

CHUNK_WEIGHTS = 2**21  # rows worked on at once, so that temporaries stay small


def round_to_nearest(
    weight: Tensor, bits: int, group_size: int, zero: str, clip: str
) -> IntegerWeight:
    """Fit a grid to each group of columns and round to it; arguments as in `fit_grid`.

    Args:
        weight: (out, in, ...) floating.
    """
    matrix = weight.flatten(1)
    step = max(1, CHUNK_WEIGHTS // max(1, matrix.shape[1]))
    codes, scales, zeros = [], [], []
    for rows in matrix.split(step):
        scale, offset = fit_grid(rows, bits, group_size, zero, clip)
        codes.append(round_to_grid(rows, bits, group_size, scale, offset))
        scales.append(scale)
        if offset is not None:
            zeros.append(offset)
    return IntegerWeight.from_codes(
        tuple(weight.shape),
        bits,
        group_size,
        torch.cat(codes),
        torch.cat(scales),  # one chunk in float32 widens all; float16 values stay exact
        torch.cat(zeros) if zeros else None,
    )
