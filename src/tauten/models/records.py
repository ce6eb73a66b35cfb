"""What the report says of a layer, and of what was lost by packing it."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from tauten.core.dtypes import dtype_name
from tauten.core.errors import NotApplicableError
from tauten.core.measurement import LayerRecord
from tauten.formats.packed import PackedWeight

PRUNED = 0.1  # of a weight's values that are zero: by chance there are none, by padding a few rows
ERROR_CHUNK = 2**21  # weights compared at once
SMALLEST, LARGEST = 2.0**-50, 2.0**50  # a weight's largest value: float32 sums squares of 2**27


def check_range(weight: Tensor) -> None:
    """Raise NotApplicableError where squares of a weight's values, or sums of them, leave float32.

    By such sums techniques choose, and errors are told.
    """
    low, high = torch.aminmax(weight)
    largest = max(-float(low), float(high))
    if largest and not SMALLEST <= largest <= LARGEST:
        raise NotApplicableError(
            f"its largest value is {largest:g}, and only {SMALLEST:g} to {LARGEST:g} can be packed"
        )


def layer_record(
    name: str,
    unit: str,
    held_by: str,
    weight: Tensor,
    packed: PackedWeight | None,
    original_bytes: int,
    error: float,
    reason: str,
) -> LayerRecord:
    """Describe a layer.

    Args:
        name: Of the layer.
        unit: Of its unit.
        held_by: Class of its module.
        weight: Of the layer before; perhaps empty.
        packed: What became of it; None if it was kept.
        original_bytes: Of the weight as stored; 0 if it is tied to that of another layer.
        error: As in `LayerRecord`, as is `reason`.
        reason: Why.
    """
    if packed is None:
        held = dtype_name(weight.dtype)
        bits, size_bytes = 8 * original_bytes / weight.numel(), original_bytes
    else:
        held, bits = packed.label, packed.bits_per_weight
        size_bytes = packed.size_bytes if original_bytes else 0
    shape, bits = tuple(weight.shape), round(bits, 3)
    sizes = original_bytes, size_bytes
    return LayerRecord(name, unit, shape, held, bits, *sizes, error, reason, held_by)


def relative_error(matrix: Tensor, packed: PackedWeight) -> float:
    """|W - W'| / |W| (Frobenius), 0 for a zero weight: matrix (out, in, ...) floating."""
    lost = total = 0.0
    for before, after in _by_rows(matrix, packed):
        exact = before.float()
        lost += float((exact - after).square().sum())
        total += float(exact.square().sum())
    return round((lost / total) ** 0.5, 6) if total else 0.0


def zeros_of(matrix: Tensor, packed: PackedWeight) -> tuple[float, float]:
    """Shares of a pruned matrix that were zero, and that aren't any more; 0 where it is dense.

    Args:
        matrix: (out, in, ...) floating.
        packed: What became of it.
    """
    share = zero_share(matrix)
    if share < PRUNED:
        return 0.0, 0.0
    pairs = _by_rows(matrix, packed)
    lost = sum(int(((before == 0) & (after != 0)).sum()) for before, after in pairs)
    return share, lost / matrix.numel()


def _by_rows(matrix: Tensor, packed: PackedWeight) -> Iterator[tuple[Tensor, Tensor]]:
    """A few rows of a matrix at a time, (rows, in), beside what became of them."""
    flat = matrix.flatten(1)
    step = max(1, ERROR_CHUNK // max(1, flat.shape[1]))
    for start in range(0, flat.shape[0], step):
        rows = slice(start, start + step)
        yield flat[rows], packed.dequantize_rows(rows)


def zero_share(weight: Tensor) -> float:
    """Which part of a weight is exactly zero."""
    return float((weight == 0).sum()) / max(1, weight.numel())


def read_record(raw: dict[str, Any]) -> LayerRecord:
    """From the plain data that `dataclasses.asdict` made."""
    return LayerRecord(**{**raw, "shape": tuple(raw["shape"])})
