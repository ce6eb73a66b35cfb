"""Parts of packed weights: together they stand for the whole, and nothing is rounded again."""

import itertools

import pytest
import torch
from torch import Tensor

from tauten.core.errors import InputError, NotApplicableError
from tauten.formats.codebook import CodebookWeight
from tauten.formats.integer import IntegerWeight
from tauten.formats.packed import PackedWeight, from_spec, shard_range
from tauten.quantization import RTN

GRIDS = [(4, 8, "integer"), (3, 8, "float"), (8, 0, "none"), (5, 0, "integer"), (1, 16, "none")]


def integer_weight(bits: int, group_size: int, zero: str) -> IntegerWeight:
    return RTN(bits, group_size, zero).encode(torch.randn(19, 37))


def book_weight(books: int, bits: int = 3) -> CodebookWeight:
    codes = torch.randint(0, 2**bits, (19, 37), dtype=torch.uint8)
    return CodebookWeight.from_codes((19, 37), bits, codes, torch.randn(books, 2**bits))


def parts(weight: PackedWeight, world: int, dim: int, unit: int = 1) -> list[PackedWeight]:
    return [weight.shard(rank, world, dim, unit) for rank in range(world)]


def whole(shards: list[PackedWeight], dim: int) -> Tensor:
    return torch.cat([shard.dequantize() for shard in shards], dim)


@pytest.mark.parametrize("interleaved", [False, True])
def test_parts_make_up_the_whole(interleaved: bool) -> None:
    weights: list[IntegerWeight | CodebookWeight] = [integer_weight(*grid) for grid in GRIDS]
    weights += [book_weight(1), book_weight(19), book_weight(1, 4)]
    for weight in weights:
        before = weight.dequantize()
        if interleaved:
            weight.interleave()
        unit = getattr(weight, "group_size", 0) or 1
        for world, (dim, size) in itertools.product((1, 2, 3), ((0, 3), (1, unit))):
            shards = parts(weight, world, dim, size)
            assert torch.equal(whole(shards, dim), before)
            for shard in shards:
                assert from_spec(shard.spec()).state_dict().keys() == shard.state_dict().keys()
        assert weight.interleaved == interleaved


def test_parts_keep_no_other_memory() -> None:
    for weight in (integer_weight(8, 0, "none"), book_weight(1, 8), book_weight(19, 8)):
        for dim in (0, 1):
            for name, buffer in weight.narrow(dim, 2, 5).named_buffers():
                storage = buffer.untyped_storage()
                assert storage.nbytes() == buffer.nbytes
                assert storage.data_ptr() != weight.get_buffer(name).untyped_storage().data_ptr()


def test_the_kernel_of_a_convolution_stays_whole() -> None:
    weight = RTN(4, 6).encode(torch.randn(4, 6, 2, 3))
    shards = parts(weight, 2, 1)
    assert [shard.shape for shard in shards] == [(4, 3, 2, 3)] * 2
    assert torch.equal(whole(shards, 1), weight.dequantize())


def test_ranges_cover_all_without_overlap() -> None:
    assert [shard_range(19, rank, 4) for rank in range(4)] == [(0, 5), (5, 10), (10, 15), (15, 19)]
    assert [shard_range(37, rank, 3, 8) for rank in range(3)] == [(0, 16), (16, 32), (32, 37)]


def test_cutting_a_group_is_refused_with_the_remedy() -> None:
    weight = integer_weight(4, 8, "none")
    with pytest.raises(InputError, match="unit=8"):
        weight.shard(0, 2, 1)
    with pytest.raises(InputError, match="unit=8"):
        weight.narrow(1, 4, 33)
    assert weight.narrow(1, 32, 5).in_features == 5


@pytest.mark.parametrize(
    "arguments",
    [(2, 2, 0), (-1, 2, 0), (0, 20, 0), (0, 6, 1, 8), (0, 0, 0), (0, 2, 2), (0, 1, 0, 0)],
)
def test_impossible_shards_raise(arguments: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="expected"):
        integer_weight(4, 8, "none").shard(*arguments)


def test_ranges_outside_raise() -> None:
    for dim, start, length in ((0, -1, 3), (0, 17, 3), (0, 0, 0), (1, 0, 38), (2, 0, 1)):
        with pytest.raises(InputError, match="range"):
            book_weight(1).narrow(dim, start, length)


def test_kinds_that_cannot_be_cut_say_so() -> None:
    weight = integer_weight(4, 8, "none")
    with pytest.raises(NotApplicableError, match="integer"):
        PackedWeight.narrow(weight, 0, 0, 1)
