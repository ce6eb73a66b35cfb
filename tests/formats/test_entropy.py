"""Entropy-coded tensors: exact, near the bound of their entropy, and refused where damaged."""

import random
import struct
import zlib

import pytest
import torch
from torch import Tensor

from tauten.core.errors import CorruptError
from tauten.formats import entropy
from tauten.formats.bits import pack


def normal_codes(rows: int, columns: int, bits: int) -> Tensor:
    """(rows, columns) uint8 codes of a normal weight, three deviations from middle to end."""
    values = torch.randn(rows, columns, generator=torch.manual_seed(rows + columns))
    middle = 2 ** (bits - 1)
    return (values / 3 * middle + middle - 0.5).round().clamp(0, 2**bits - 1).to(torch.uint8)


def shannon_bytes(codes: Tensor) -> float:
    """What a perfect coder that knows the frequencies would take."""
    share = codes.flatten().int().bincount().double() / codes.numel()
    share = share[share > 0]
    return float(-(share * share.log2()).sum()) * codes.numel() / 8


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("block", [64, 4096])
@pytest.mark.parametrize("shape", [(1, 1), (7, 33), (40, 130), (3, 1000)])
def test_round_trip(monkeypatch, bits: int, block: int, shape: tuple[int, int]) -> None:
    """Blocks of many rows, of one, and of pieces of one."""
    monkeypatch.setattr(entropy, "BLOCK_CODES", block)
    packed = pack(normal_codes(*shape, bits), bits)
    assert torch.equal(entropy.decode(entropy.encode(packed, (bits, shape[1]))), packed)


@pytest.mark.parametrize("count", [1, 5000])
def test_one_row_without_a_first_dimension(monkeypatch, count: int) -> None:
    monkeypatch.setattr(entropy, "BLOCK_CODES", 1024)
    packed = pack(normal_codes(1, count, 3)[0], 3)
    assert torch.equal(entropy.decode(entropy.encode(packed, (3, count))), packed)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("shape", [(), (3,), (40, 130), (2, 3, 4, 5)])
def test_floats_round_trip(monkeypatch, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    monkeypatch.setattr(entropy, "BLOCK_CODES", 1000)
    values = torch.randn(shape, generator=torch.manual_seed(0)).to(dtype)
    decoded = entropy.decode(entropy.encode(values))
    assert decoded.dtype == dtype and torch.equal(decoded, values)


def test_bfloat16_loses_a_fourth() -> None:
    """Its first byte, sign and exponent, of a normal weight has 2.6 bits and the sign."""
    values = torch.randn(500, 500, generator=torch.manual_seed(0)).bfloat16()
    assert entropy.encode(values).nbytes < 0.75 * values.nbytes


@pytest.mark.parametrize("bits", range(2, 9))
def test_size_is_near_the_bound(bits: int) -> None:
    codes = normal_codes(512, 1000, bits)
    size, bound = entropy.encode(pack(codes, bits), (bits, 1000)).nbytes, shannon_bytes(codes)
    assert bound < 0.96 * pack(codes, bits).nbytes
    assert bound < size < 1.015 * bound


def test_evenly_spread_codes_hardly_grow() -> None:
    packed = torch.randint(0, 256, (300, 1000), generator=torch.manual_seed(0)).to(torch.uint8)
    assert packed.nbytes < entropy.encode(packed, (4, 2000)).nbytes < 1.001 * packed.nbytes


def test_blocks_decode_on_their_own(monkeypatch) -> None:
    monkeypatch.setattr(entropy, "BLOCK_CODES", 2000)
    codes = normal_codes(50, 100, 8)
    stream = entropy.encode(codes, (8, 100)).numpy().tobytes()
    last = stream.rindex(zlib.compress(b"", 1)[:2])  # how each block begins
    assert zlib.decompress(stream[last:]) == codes[40:].numpy().tobytes()


def test_damage_is_an_error_and_nothing_else(monkeypatch) -> None:
    """Changed bytes and cuts anywhere."""
    monkeypatch.setattr(entropy, "BLOCK_CODES", 512)
    packed, generator = pack(normal_codes(30, 90, 3), 3), random.Random(0)
    harmless = 0
    whole = entropy.encode(packed, (3, 90))
    for trial in range(1000):
        damaged = whole.clone()
        place = generator.randrange(60 if trial % 3 == 0 else len(whole))  # the header more often
        damaged[place] = int(damaged[place]) ^ generator.randrange(1, 256)
        if trial % 5 == 0:
            damaged = damaged[: generator.randrange(len(whole))]
        try:
            decoded = entropy.decode(damaged)
        except CorruptError:
            continue
        assert torch.equal(decoded, packed)
        harmless += 1
    assert harmless < 10, "few bits in the headers of zlib mean nothing to it"


@pytest.mark.parametrize(
    "stream", [torch.zeros(0, dtype=torch.uint8), torch.zeros(100), torch.zeros(4, 30).byte()]
)
def test_what_is_no_stream_is_refused(stream: Tensor) -> None:
    with pytest.raises(CorruptError, match=r"cut short|damaged header"):
        entropy.decode(stream)


def test_no_more_memory_is_taken_than_blocks_could_fill(monkeypatch) -> None:
    """Huffman codes have a bit at least: 8 codes a byte, whatever the header says."""
    monkeypatch.setattr(entropy, "BLOCK_CODES", 2**20)
    tall = entropy.encode(torch.zeros(2**10, dtype=torch.uint8)[None], (8, 2**10))
    header = struct.pack("<2QI", 1, 2**20, len(tall) - 30)
    claimed = struct.pack("<4sIBB", b"huf1", zlib.crc32(header, 8), 8, 2) + header
    stream = torch.frombuffer(bytearray(claimed + bytes(tall[len(claimed) :])), dtype=torch.uint8)
    monkeypatch.setattr(entropy, "_inflate", None)
    with pytest.raises(CorruptError, match="lacks blocks"):
        entropy.decode(stream)
