"""Ternary weights: five trits a byte, the promised bytes, damage refused, the same weight back."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tauten.core.errors import CorruptError, InputError
from tauten.formats.packed import from_spec
from tauten.formats.ternary import TernaryWeight, pack_trits, trit_bytes, unpack_trits

ROWS, COLUMNS = 19, 37
GROUPS = (0, 5, 32, 100)


def signs_and_scale(group_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(group_size)
    signs = torch.randint(-1, 2, (ROWS, COLUMNS), generator=generator, dtype=torch.int8)
    cells = (ROWS, -(-COLUMNS // (group_size or COLUMNS)))
    return signs, (torch.rand(cells, generator=generator) + 0.1).half()


def weight(group_size: int = 32) -> TernaryWeight:
    return TernaryWeight.from_signs((ROWS, COLUMNS), group_size, *signs_and_scale(group_size))


@pytest.mark.parametrize("count", range(1, 13))
def test_trits_come_back(count: int) -> None:
    trits = torch.randint(0, 3, (7, count), dtype=torch.uint8)
    packed = pack_trits(trits)
    assert packed.shape == (7, trit_bytes(count)) and packed.dtype == torch.uint8
    assert torch.equal(unpack_trits(packed, count), trits)


def test_every_byte_below_243_is_its_own_five_trits() -> None:
    packed = torch.arange(243, dtype=torch.uint8)[:, None]
    trits = unpack_trits(packed, 5)
    assert len(trits.unique(dim=0)) == 243 and torch.equal(pack_trits(trits), packed)


@pytest.mark.parametrize("byte", [243, 255])
def test_other_bytes_are_refused(byte: int) -> None:
    damaged = weight()
    damaged.codes[3, 2] = byte
    for use in (damaged.dequantize, damaged.interleave, damaged.integer_codes):
        with pytest.raises(CorruptError, match=str(byte)):
            use()


@pytest.mark.parametrize("group_size", GROUPS)
def test_values_are_signs_times_the_scale_of_their_group(group_size: int) -> None:
    signs, scale = signs_and_scale(group_size)
    spread = scale.float()[:, torch.arange(COLUMNS) // (group_size or COLUMNS)]
    packed = weight(group_size)
    assert torch.equal(packed.dequantize(), signs * spread)
    index = torch.tensor([4, 0, 0, 18])
    assert torch.equal(packed.dequantize_rows(index), (signs * spread)[index])


@pytest.mark.parametrize("group_size", GROUPS)
def test_bytes_are_those_stored_and_come_back(tmp_path: Path, group_size: int) -> None:
    packed = weight(group_size)
    save_file(packed.state_dict(), tmp_path / "w.safetensors")
    raw = (tmp_path / "w.safetensors").read_bytes()
    assert packed.size_bytes == len(raw) - 8 - int.from_bytes(raw[:8], "little")
    twin = from_spec(packed.spec())
    assert twin.size_bytes == packed.size_bytes and twin.spec() == packed.spec()
    twin.load_state_dict(load_file(tmp_path / "w.safetensors"), assign=True)
    assert torch.equal(twin.dequantize(), packed.dequantize())


def test_a_weight_takes_1_6_bits_beside_its_scales() -> None:
    packed = TernaryWeight.from_signs((4, 320), 0, torch.ones(4, 320), torch.ones(4, 1).half())
    assert packed.bits_per_weight == pytest.approx(1.6 + 16 / 320)


def test_interleaving_changes_no_value_and_no_byte_on_disk() -> None:
    packed = weight()
    before, size = packed.dequantize(), packed.size_bytes
    state = {name: tensor.clone() for name, tensor in packed.state_dict().items()}
    packed.interleave()
    assert packed.interleaved and packed.codes.shape == (2, 2, 2, 64)  # two bits a code
    assert torch.equal(packed.dequantize(), before) and packed.size_bytes == size
    assert all(torch.equal(tensor, state[name]) for name, tensor in packed.state_dict().items())
    packed.deinterleave()
    assert torch.equal(packed.codes, state["codes"])
    packed.interleave()
    assert packed.to("meta").codes.shape == state["codes"].shape


@pytest.mark.parametrize("interleaved", [False, True])
def test_parts_make_up_the_whole(interleaved: bool) -> None:
    packed = weight()
    before = packed.dequantize()
    if interleaved:
        packed.interleave()
    for dim, unit in ((0, 3), (1, 32)):
        parts = [packed.shard(rank, 2, dim, unit) for rank in range(2)]
        assert all(isinstance(part, TernaryWeight) for part in parts)
        assert torch.equal(torch.cat([part.dequantize() for part in parts], dim), before)


@pytest.mark.parametrize(("bits", "code"), [(2, 0), (2, 4), (3, 2)])
def test_codes_that_are_no_signs_are_refused(bits: int, code: int) -> None:
    codes = torch.full((2, 4), code, dtype=torch.uint8)
    with pytest.raises(InputError, match="1, 2 or 3"):
        TernaryWeight.from_codes((2, 4), bits, 0, codes, torch.ones(2, 1), None)
