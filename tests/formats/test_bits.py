"""Dense packing, against a packer that writes one bit at a time."""

import pytest
import torch

from tauten.formats.bits import pack, packed_bytes, planes, unpack

BITS = range(1, 9)
COUNTS = (1, 2, 3, 7, 8, 9, 31, 64, 65)


def codes_of(shape: tuple[int, ...], bits: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(bits)
    return torch.randint(0, 2**bits, shape, generator=generator, dtype=torch.uint8)


def packed_bit_by_bit(row: list[int], bits: int) -> list[int]:
    """What the layout says: planes widest first, low bits first, each padded to whole bytes."""
    out, shift = [], 0
    for width in [w for w in (8, 4, 2, 1) if bits & w]:
        stream = [code >> (shift + bit) & 1 for code in row for bit in range(width)]
        stream += [0] * (-len(stream) % 8)
        for start in range(0, len(stream), 8):
            out.append(sum(b << i for i, b in enumerate(stream[start : start + 8])))
        shift += width
    return out


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("count", COUNTS)
def test_layout_and_bytes(bits: int, count: int) -> None:
    codes = codes_of((3, count), bits)
    packed = pack(codes, bits)
    assert packed.tolist() == [packed_bit_by_bit(row, bits) for row in codes.tolist()]
    assert packed.shape[1] == packed_bytes(count, bits)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("shape", [*((n,) for n in COUNTS), (2, 3, 5), (0, 9), (4, 1)])
def test_unpack_undoes_pack(bits: int, shape: tuple[int, ...]) -> None:
    codes = codes_of(shape, bits)
    assert torch.equal(unpack(pack(codes, bits), bits, shape[-1]), codes)


@pytest.mark.parametrize("bits", BITS)
def test_packing_is_dense(bits: int) -> None:
    assert packed_bytes(800, bits) == 100 * bits
    for count in COUNTS:
        waste = packed_bytes(count, bits) - count * bits / 8
        assert 0 <= waste < len(planes(bits))  # less than a byte a plane


@pytest.mark.parametrize("bits", BITS)
def test_planes_add_up_to_the_code(bits: int) -> None:
    assert sum(planes(bits)) == bits
    assert list(planes(bits)) == sorted(planes(bits), reverse=True)


@pytest.mark.parametrize("bits", BITS)
def test_rows_are_packed_apart(bits: int) -> None:
    codes = codes_of((5, 13), bits)
    rows = torch.stack([pack(row, bits) for row in codes])
    assert torch.equal(pack(codes, bits), rows)


@pytest.mark.parametrize("bits", BITS)
def test_a_strided_tensor_packs_like_its_copy(bits: int) -> None:
    codes = codes_of((13, 5), bits)
    assert torch.equal(pack(codes.T, bits), pack(codes.T.contiguous(), bits))
