"""Pruned weights: what is kept comes back, the rest is exactly zero, and damage is refused."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tauten.core.errors import CorruptError, InputError
from tauten.formats.integer import ZERO_KINDS, IntegerWeight
from tauten.formats.packed import from_spec
from tauten.formats.sparse import SparseWeight

FLOATS = (torch.float32, torch.float16, torch.bfloat16)
ROWS, COLUMNS = 7, 44


def uneven(generator: torch.Generator, columns: int = COLUMNS) -> torch.Tensor:
    """A mask whose rows keep different counts: none in the first, all in the last."""
    share = torch.linspace(0, 1.01, ROWS)[:, None]
    return torch.rand(ROWS, columns, generator=generator) < share


def two_of_four(generator: torch.Generator, columns: int = COLUMNS) -> torch.Tensor:
    order = torch.rand(ROWS, columns // 4, 4, generator=generator).argsort(2)
    return (order < 2).flatten(1)


MASKS = {"any": uneven, "2:4": two_of_four}


def coded(
    bits: int, kind: str, mask: torch.Tensor, group_size: int = 5
) -> tuple[SparseWeight, torch.Tensor]:
    """A pruned integer weight, and what the unpruned one would be, masked."""
    generator = torch.Generator().manual_seed(bits)
    cells = (ROWS, -(-mask.shape[1] // (group_size or mask.shape[1])))
    codes = torch.randint(0, 2**bits, tuple(mask.shape), generator=generator, dtype=torch.uint8)
    scale, zero = (torch.rand(cells, generator=generator) + 0.1).half(), None
    if kind == "integer":
        zero = torch.randint(0, 2**bits, cells, generator=generator, dtype=torch.uint8)
    elif kind == "float":
        zero = torch.randn(cells, generator=generator).half()
    whole = IntegerWeight.from_codes(tuple(mask.shape), bits, group_size, codes, scale, zero)
    packed = SparseWeight.from_codes(mask, bits, group_size, codes, scale, zero)
    return packed, whole.dequantize().masked_fill(~mask, 0)


def assert_saves(packed: SparseWeight, path: Path) -> None:
    """The file takes the promised bytes and gives the same weight back, in either layout."""
    expected, state = packed.dequantize(), {k: v.clone() for k, v in packed.state_dict().items()}
    size = packed.size_bytes
    packed.interleave()
    assert packed.interleaved and packed.size_bytes == size
    assert torch.equal(packed.dequantize(), expected)
    assert packed.state_dict().keys() == state.keys()
    assert all(torch.equal(packed.state_dict()[name], state[name]) for name in state)
    save_file(packed.state_dict(), path)
    raw = path.read_bytes()
    assert size == len(raw) - 8 - int.from_bytes(raw[:8], "little")
    twin = from_spec(packed.spec())
    assert twin.size_bytes == size and twin.spec() == packed.spec()
    twin.load_state_dict(load_file(path), assign=True)
    assert torch.equal(twin.dequantize(), expected)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("pattern", MASKS)
def test_floats_come_back_unrounded(tmp_path: Path, pattern: str, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    mask = MASKS[pattern](generator)
    weight = torch.randn(ROWS, COLUMNS, generator=generator).to(dtype)
    packed = SparseWeight.from_dense(weight, mask)
    expected = weight.masked_fill(~mask, 0)
    assert packed.pattern == pattern
    assert torch.equal(packed.dequantize(dtype), expected)
    index = torch.tensor([6, 0, 6])
    assert torch.equal(packed.dequantize_rows(index, dtype), expected[index])
    assert torch.equal(packed.dequantize_rows(slice(2, 4), dtype), expected[2:4])
    for wrong in (-1, ROWS):
        with pytest.raises(IndexError):
            packed.dequantize_rows(torch.tensor([wrong]))
    assert_saves(packed, tmp_path / "w.safetensors")


@pytest.mark.parametrize("kind", ZERO_KINDS)
@pytest.mark.parametrize("bits", range(1, 9))
def test_codes_mean_what_they_mean_in_an_integer_weight(
    tmp_path: Path, bits: int, kind: str
) -> None:
    for mask_of in MASKS.values():
        for group_size in (0, 5, 32):
            mask = mask_of(torch.Generator().manual_seed(1))
            packed, expected = coded(bits, kind, mask, group_size)
            assert torch.equal(packed.dequantize(), expected)
            assert torch.equal(packed.dequantize_rows(torch.tensor([5])), expected[5:6])
            assert_saves(packed, tmp_path / "w.safetensors")


def test_bits_a_weight() -> None:
    weight = torch.randn(64, 128).bfloat16()
    quads = torch.tensor([True, False, False, True]).repeat(64, 32)
    assert SparseWeight.from_dense(weight, quads).bits_per_weight == 8.75
    pairs = torch.tensor([True, True, True, False, False, False, False, True]).repeat(64, 16)
    assert SparseWeight.from_dense(weight, pairs).bits_per_weight == 9
    codes = torch.zeros(64, 128, dtype=torch.uint8)
    packed = SparseWeight.from_codes(quads, 4, 128, codes, torch.ones(64, 1).half(), None)
    assert packed.bits_per_weight == 0.75 + 2 + 16 / 128


def test_kernels_and_masks_at_the_edges() -> None:
    weight = torch.randn(4, 2, 3, 3)
    for mask in (weight > 0, torch.zeros_like(weight).bool(), torch.ones_like(weight).bool()):
        packed = SparseWeight.from_dense(weight, mask)
        packed.interleave()
        assert torch.equal(packed.dequantize(), weight * mask)


def test_nan_and_infinity_are_kept() -> None:
    weight = torch.tensor([[float("nan"), 1.0, float("inf"), 2.0]])
    found = SparseWeight.from_dense(weight, torch.tensor([[True, False, True, False]])).dequantize()
    assert found[0, 0].isnan() and found[0, 1] == 0 and found[0, 2].isinf() and found[0, 3] == 0


def test_half_keeps_the_format() -> None:
    weight = torch.randn(ROWS, COLUMNS)
    packed = SparseWeight.from_dense(weight, weight > 0)
    assert torch.equal(packed.half().dequantize(), weight.clamp(min=0))


BAD = {
    "integer weight": lambda w, m: SparseWeight.from_dense(w.int(), m),
    "float mask": lambda w, m: SparseWeight.from_dense(w, m.float()),
    "short mask": lambda w, m: SparseWeight.from_dense(w, m[:, :-1]),
    "a vector": lambda w, m: SparseWeight.from_dense(w[0], m[0]),
    "no column": lambda w, m: SparseWeight.from_dense(w[:, :0], m[:, :0]),
    "bits": lambda w, m: SparseWeight.from_codes(m, 9, 0, m.byte(), torch.ones(ROWS, 1), None),
    "group": lambda w, m: SparseWeight.from_codes(m, 4, -1, m.byte(), torch.ones(ROWS, 1), None),
    "signed": lambda w, m: SparseWeight.from_codes(m, 4, 0, m.char(), torch.ones(ROWS, 1), None),
    "large": lambda w, m: SparseWeight.from_codes(m, 2, 0, m.byte() * 4, torch.ones(ROWS, 1), None),
    "scale": lambda w, m: SparseWeight.from_codes(m, 4, 0, m.byte(), torch.ones(ROWS, 2), None),
    "zero": lambda w, m: SparseWeight.from_codes(
        m, 4, 0, m.byte(), torch.ones(ROWS, 1), torch.ones(ROWS, 1).half()
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused(case: str) -> None:
    weight = torch.randn(ROWS, COLUMNS)
    with pytest.raises(InputError):
        BAD[case](weight, weight > 0)


def wrong_dtype(packed: SparseWeight) -> None:
    packed.values = packed.values.long()


def fewer_values(packed: SparseWeight) -> None:
    packed.values = packed.values[:-1]


def another_mask(packed: SparseWeight) -> None:
    packed.mask = packed.mask.clone()
    packed.mask[0, 0] ^= 1


@pytest.mark.parametrize("damage", [wrong_dtype, fewer_values, another_mask])
def test_damaged_tensors_are_refused(damage: object) -> None:
    weight = torch.randn(ROWS, COLUMNS)
    for use in (SparseWeight.dequantize, SparseWeight.interleave):
        packed = SparseWeight.from_dense(weight, uneven(torch.Generator().manual_seed(2)))
        damage(packed)  # type: ignore[operator]
        with pytest.raises(CorruptError):
            use(packed)


def test_pairs_that_do_not_exist_are_refused() -> None:
    packed = SparseWeight.from_dense(
        torch.randn(ROWS, COLUMNS), two_of_four(torch.Generator().manual_seed(2))
    )
    packed.mask = torch.full_like(packed.mask, 255)
    with pytest.raises(CorruptError):
        packed.dequantize()
