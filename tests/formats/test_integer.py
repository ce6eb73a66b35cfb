"""Integer weights: the nearest level, the promised bytes, the same weight back."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tauten.core.errors import InputError
from tauten.formats.integer import ZERO_KINDS, IntegerWeight
from tauten.formats.packed import from_spec

BITS = range(1, 9)
GROUPS = (0, 1, 5, 32, 100)  # of 37 columns: whole row, each column, two that don't divide, more
ROWS, COLUMNS = 6, 37


def grid(
    bits: int, kind: str, group_size: int, dtype: torch.dtype = torch.float16
) -> tuple[torch.Tensor, torch.Tensor | None]:
    generator = torch.Generator().manual_seed(bits)
    shape = (ROWS, -(-COLUMNS // (group_size or COLUMNS)))
    scale = (torch.rand(shape, generator=generator) + 0.1).to(dtype)
    if kind == "none":
        return scale, None
    if kind == "float":
        return scale, torch.randn(shape, generator=generator).to(dtype)
    return scale, torch.randint(0, 2**bits, shape, generator=generator, dtype=torch.uint8)


def levels_of(
    bits: int, group_size: int, scale: torch.Tensor, zero: torch.Tensor | None
) -> torch.Tensor:
    """(rows, columns, 2**bits) float64: every level each weight could take."""
    group = torch.arange(COLUMNS) // (group_size or COLUMNS)
    step = scale.double()[:, group, None]
    codes = torch.arange(2**bits, dtype=torch.float64)
    if zero is None:
        return step * (codes - (2 ** (bits - 1) if bits > 1 else 0.5))
    spread = zero.double()[:, group, None]
    return step * codes + spread if zero.is_floating_point() else step * (codes - spread)


def weight_of(bits: int) -> torch.Tensor:
    """Wider than the grid, so that some weights are clipped."""
    generator = torch.Generator().manual_seed(100 + bits)
    return torch.randn(ROWS, COLUMNS, generator=generator) * 2**bits / 4


def encoded(bits: int, kind: str, group_size: int) -> IntegerWeight:
    scale, zero = grid(bits, kind, group_size)
    return IntegerWeight.encode(weight_of(bits), bits, group_size, scale, zero)


@pytest.mark.parametrize("group_size", GROUPS)
@pytest.mark.parametrize("kind", ZERO_KINDS)
@pytest.mark.parametrize("bits", BITS)
def test_encode_picks_the_nearest_level(bits: int, kind: str, group_size: int) -> None:
    weight, (scale, zero) = weight_of(bits), grid(bits, kind, group_size)
    packed = IntegerWeight.encode(weight, bits, group_size, scale, zero)
    levels = levels_of(bits, group_size, scale, zero)
    found = packed.dequantize().double()
    closest = (levels - found[..., None]).abs().amin(-1)
    assert closest.max() < 1e-4  # what comes back is a level of the weight's own group
    nearest = (levels - weight.double()[..., None]).abs().amin(-1)
    assert ((found - weight.double()).abs() - nearest).max() < 1e-4


@pytest.mark.parametrize("kind", ZERO_KINDS)
@pytest.mark.parametrize("bits", BITS)
def test_codes_and_zeros_come_back(bits: int, kind: str) -> None:
    scale, zero = grid(bits, kind, 5)
    generator = torch.Generator().manual_seed(bits)
    codes = torch.randint(0, 2**bits, (ROWS, COLUMNS), generator=generator, dtype=torch.uint8)
    packed = IntegerWeight.from_codes((ROWS, COLUMNS), bits, 5, codes, scale, zero)
    assert torch.equal(packed.integer_codes(), codes)
    if kind == "integer":
        assert torch.equal(packed.integer_zero(), zero)
    expected = levels_of(bits, 5, scale, zero).gather(2, codes.long()[..., None])[..., 0]
    assert (packed.dequantize().double() - expected).abs().max() < 1e-4


@pytest.mark.parametrize("scale_dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("group_size", GROUPS)
@pytest.mark.parametrize("kind", ZERO_KINDS)
@pytest.mark.parametrize("bits", BITS)
def test_size_is_what_safetensors_stores(
    tmp_path: Path, bits: int, kind: str, group_size: int, scale_dtype: torch.dtype
) -> None:
    scale, zero = grid(bits, kind, group_size, scale_dtype)
    packed = IntegerWeight.encode(weight_of(bits), bits, group_size, scale, zero)
    save_file(packed.state_dict(), tmp_path / "w.safetensors")
    raw = (tmp_path / "w.safetensors").read_bytes()
    stored = len(raw) - 8 - int.from_bytes(raw[:8], "little")  # without the header
    assert packed.size_bytes == stored
    assert packed.bits_per_weight == pytest.approx(8 * stored / (ROWS * COLUMNS))


def test_bytes_of_four_bits_in_groups_of_32_with_offsets_are_those_of_q4_1() -> None:
    weight = torch.randn(8, 64)
    scale, zero = torch.ones(8, 2).half(), torch.zeros(8, 2).half()
    packed = IntegerWeight.encode(weight, 4, 32, scale, zero)
    assert packed.size_bytes == 8 * 2 * 20  # a Q4_1 block: 16 bytes of codes, 2 halves
    assert packed.bits_per_weight == 5


@pytest.mark.parametrize("group_size", GROUPS)
@pytest.mark.parametrize("kind", ZERO_KINDS)
@pytest.mark.parametrize("bits", BITS)
def test_save_and_load_into_an_empty_twin(
    tmp_path: Path, bits: int, kind: str, group_size: int
) -> None:
    packed = encoded(bits, kind, group_size)
    save_file(packed.state_dict(), tmp_path / "w.safetensors")
    twin = from_spec(packed.spec())
    assert {k: (v.shape, v.dtype, v.device.type) for k, v in twin.state_dict().items()} == {
        k: (v.shape, v.dtype, "meta") for k, v in packed.state_dict().items()
    }
    assert twin.size_bytes == packed.size_bytes
    twin.load_state_dict(load_file(tmp_path / "w.safetensors"), assign=True)
    assert torch.equal(twin.dequantize(), packed.dequantize())
    assert twin.spec() == packed.spec()


@pytest.mark.parametrize("kind", ZERO_KINDS)
@pytest.mark.parametrize("bits", [1, 3, 4, 8])
def test_rows_are_those_of_the_whole(bits: int, kind: str) -> None:
    packed = encoded(bits, kind, 5)
    whole = packed.dequantize()
    index = torch.tensor([4, 0, 0, 5])
    assert torch.equal(packed.dequantize_rows(index), whole[index])
    assert torch.equal(packed.dequantize_rows(slice(1, 4)), whole[1:4])
    for wrong in (-1, ROWS):
        with pytest.raises(IndexError):
            packed.dequantize_rows(torch.tensor([wrong]))


def test_a_kernel_counts_as_columns_and_keeps_its_shape() -> None:
    weight = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    scale = torch.full((4, 1), 0.02)
    packed = IntegerWeight.encode(weight, 8, 0, scale, None)
    flat = IntegerWeight.encode(weight.flatten(1), 8, 0, scale, None)
    assert packed.dequantize().shape == weight.shape
    assert torch.equal(packed.dequantize().flatten(1), flat.dequantize())


def test_eight_bit_codes_are_stored_as_twos_complement() -> None:
    weight = torch.tensor([[-128.0, -1, 0, 1, 127]])
    packed = IntegerWeight.encode(weight, 8, 0, torch.ones(1, 1), None)
    assert packed.codes.view(torch.int8).tolist() == [[-128, -1, 0, 1, 127]]


@pytest.mark.parametrize(("bits", "group_size"), [(0, 8), (9, 8), (-1, 8), (4, -1)])
def test_a_grid_that_is_none_is_refused(bits: int, group_size: int) -> None:
    with pytest.raises(InputError, match=str(min(bits, group_size)) if bits != 9 else "9"):
        IntegerWeight.encode(torch.ones(2, 8), bits, group_size, torch.ones(2, 1), None)
