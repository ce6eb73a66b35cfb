"""Weights with two levels of scales: what codes stand for, the promised bytes, the same weight."""

import copy
from pathlib import Path

import pytest
import torch
from packed_weights import random_superblock
from safetensors.torch import load_file, save_file
from torch import Tensor

from tauten.core.errors import CorruptError, InputError
from tauten.formats.integer import center
from tauten.formats.packed import from_spec
from tauten.formats.superblock import SuperblockWeight, TwoLevelGrid
from tauten.runtime import kernels

# The last superblock, and the last group in it, are shorter in rows of 150 columns.
GRIDS = [
    TwoLevelGrid(4, 32, 64, 6, "float"),
    TwoLevelGrid(3, 32, 0, 4, "none"),
    TwoLevelGrid(2, 16, 64, 4, "float"),
    TwoLevelGrid(8, 32, 128, 8, "none"),
    TwoLevelGrid(1, 32, 32, 2, "float"),
]
ROWS, COLUMNS = 21, 150


def sample(
    grid: TwoLevelGrid, shape: tuple[int, ...] = (ROWS, COLUMNS), as_kernels: bool = False
) -> tuple[SuperblockWeight, Tensor]:
    """A packed weight and the (out, in) float64 matrix it stands for, a column at a time.

    Args:
        as_kernels: With the scale and offset of each group rounded to float16.
    """

    def kept(values: Tensor) -> Tensor:
        return values.float().half().double() if as_kernels else values

    torch.manual_seed(grid.bits)
    packed = random_superblock(shape, grid)
    codes, scales = packed.integer_codes().double(), packed.scales()
    matrix = torch.empty_like(codes)
    for column in range(packed.in_features):
        group, block = column // grid.group_size, column // (grid.superblock or packed.in_features)
        scale, step = scales.scale_codes[:, group].double(), scales.super_scale[:, block].double()
        code = codes[:, column]
        if scales.zero_codes is None or scales.super_zero is None:
            signed = scale - 2 ** (grid.scale_bits - 1)
            matrix[:, column] = kept(step * signed) * (code - center(grid.bits))
        else:
            offset = scales.super_zero[:, block].double() * scales.zero_codes[:, group].double()
            matrix[:, column] = kept(step * scale) * code - kept(offset)
    return packed, matrix


def close(found: Tensor, matrix: Tensor) -> bool:
    """Equal but for the one rounding to float32."""
    return bool(((found.double() - matrix).abs() <= 2**-22 * matrix.abs().max()).all())


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_weights_are_what_both_levels_say(grid: TwoLevelGrid) -> None:
    packed, matrix = sample(grid)
    assert close(packed.dequantize(), matrix)
    index = torch.tensor([20, 0, 20])
    assert close(packed.dequantize_rows(index), matrix[index])
    with pytest.raises(IndexError):
        packed.dequantize_rows(torch.tensor([ROWS]))


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_save_and_load_with_the_promised_bytes(tmp_path: Path, grid: TwoLevelGrid) -> None:
    packed, _ = sample(grid)
    save_file(packed.state_dict(), tmp_path / "w.safetensors")
    raw = (tmp_path / "w.safetensors").read_bytes()
    assert packed.size_bytes == len(raw) - 8 - int.from_bytes(raw[:8], "little")
    twin = from_spec(packed.spec())
    assert twin.size_bytes == packed.size_bytes
    twin.load_state_dict(load_file(tmp_path / "w.safetensors"), assign=True)
    assert torch.equal(twin.dequantize(), packed.dequantize())
    assert twin.spec() == packed.spec()


def test_bytes_of_q4_k() -> None:
    packed, _ = sample(TwoLevelGrid(4, 32, 256, 6, "float"), (10, 512))
    assert packed.size_bytes == 10 * 2 * 144  # a block: 128 of codes, 12 of scales, 2 halves
    assert packed.bits_per_weight == 4.5


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_interleaving_changes_no_value_and_nothing_saved(grid: TwoLevelGrid) -> None:
    packed, _ = sample(grid)
    before, size = packed.dequantize(), packed.size_bytes
    state = copy.deepcopy(packed.state_dict())
    packed.interleave()
    assert packed.interleaved and packed.size_bytes == size
    assert torch.equal(packed.dequantize(), before)
    held = packed.state_dict()
    assert held.keys() == state.keys() and all(torch.equal(held[k], state[k]) for k in state)
    packed.load_state_dict(state)
    assert torch.equal(packed.dequantize(), before)
    packed.deinterleave()
    assert torch.equal(packed.dequantize(), before)
    assert sum(buffer.nbytes for buffer in packed.buffers()) == size


@pytest.mark.parametrize("activation", ["float", "int8"])
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_products_are_those_of_the_dense_weight(grid: TwoLevelGrid, activation: str) -> None:
    native = kernels.library.load() is not None and grid.group_size % 32 == 0
    packed, matrix = sample(grid, as_kernels=native)
    x = torch.randn(5, COLUMNS)
    expected = x.double() @ matrix.T
    size = x.abs().sum(1, keepdim=True).double() * matrix.abs().max()
    y = kernels.linear(x, packed, None, activation)
    assert ((y - expected).abs() <= (1e-6 if activation == "float" else 1e-2) * size).all()
    assert packed.interleaved == native
    index = torch.tensor([3, 0])
    assert close(kernels.rows(index, packed), matrix[index])


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_parts_make_up_the_whole(grid: TwoLevelGrid, interleaved: bool) -> None:
    packed, _ = sample(grid)
    whole, unit = packed.dequantize(), grid.superblock or grid.group_size
    if interleaved:
        packed.interleave()
    for dim, size in ((0, 3), (1, unit)):
        parts = [packed.shard(rank, 2, dim, size) for rank in range(2)]
        assert torch.equal(torch.cat([part.dequantize() for part in parts], dim), whole)
        for part in parts:
            assert from_spec(part.spec()).state_dict().keys() == part.state_dict().keys()
            for buffer in part.buffers():
                assert buffer.untyped_storage().nbytes() == buffer.nbytes


def test_cutting_a_superblock_is_refused_with_the_remedy() -> None:
    packed, _ = sample(GRIDS[0])
    with pytest.raises(InputError, match="unit=64"):
        packed.narrow(1, 32, 64)


def test_a_kernel_counts_as_columns() -> None:
    packed, matrix = sample(TwoLevelGrid(3, 16, 32, 6, "none"), (4, 5, 3, 3))
    assert packed.dequantize().shape == (4, 5, 3, 3)
    assert close(packed.dequantize().flatten(1), matrix)


def test_buffers_of_another_shape_are_refused() -> None:
    packed, _ = sample(GRIDS[0])
    state = packed.state_dict()
    state["scale_codes"] = state["scale_codes"][:, :-1]
    with pytest.raises(RuntimeError, match="scale_codes"):
        from_spec(packed.spec()).load_state_dict(state, assign=True)


@pytest.mark.parametrize(
    "wrong",
    [
        {"bits": 0},
        {"group_size": 0},
        {"superblock": 48},
        {"superblock": -1},
        {"scale_bits": 1},
        {"scale_bits": 9},
        {"zero_kind": "integer"},
        {"group_size": 32.0},
    ],
)
def test_a_grid_that_is_none_is_refused(wrong: dict[str, object]) -> None:
    packed, _ = sample(GRIDS[0])
    with pytest.raises(CorruptError):
        from_spec({**packed.spec(), **wrong})


def test_kernels_keep_scales_that_float16_would_lose() -> None:
    grid = TwoLevelGrid(4, 32, 64, 6, "float")
    packed, matrix = sample(grid)
    assert packed.super_zero is not None
    tiny, steps = 1e-6, packed.super_scale.float()
    packed.super_scale, packed.super_zero = steps * tiny, packed.super_zero.float() * tiny
    packed.interleave()
    assert packed.expanded_scale is not None and packed.expanded_scale.dtype == torch.float32
    x = torch.randn(5, COLUMNS)
    expected = x.double() @ (matrix * tiny).T
    torch.testing.assert_close(kernels.linear(x, packed).double(), expected, rtol=1e-4, atol=1e-9)
