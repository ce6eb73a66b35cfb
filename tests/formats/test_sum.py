"""The sum of two packed weights: the values of both, the bytes of both."""

import copy

import pytest
import torch

from tauten.core.errors import InputError
from tauten.formats.packed import from_spec
from tauten.formats.sum import SumWeight
from tauten.quantization import RTN, Ternary


def parts() -> tuple[torch.nn.Module, torch.nn.Module]:
    generator = torch.Generator().manual_seed(0)
    first = Ternary(8).encode(torch.randn(19, 37, generator=generator))
    return first, RTN(1, 8, "none").encode(torch.randn(19, 37, generator=generator))


def test_values_and_bytes_add_up() -> None:
    first, second = parts()
    packed = SumWeight(first, second)
    whole = first.dequantize() + second.dequantize()
    assert torch.equal(packed.dequantize(), whole)
    assert torch.equal(packed.dequantize_rows(slice(2, 5)), whole[2:5])
    size = first.size_bytes + second.size_bytes
    assert packed.size_bytes == size == sum(t.nbytes for t in packed.state_dict().values())
    first.interleave()
    assert packed.size_bytes == size
    assert packed.label == "ternary + integer 1 bit"


def test_it_comes_back_from_its_description_and_tensors() -> None:
    packed = SumWeight(*parts())
    twin = from_spec(packed.spec())
    assert twin.size_bytes == packed.size_bytes and twin.spec() == packed.spec()
    twin.load_state_dict(copy.deepcopy(packed.state_dict()), assign=True)
    assert torch.equal(twin.dequantize(), packed.dequantize())


def test_parts_make_up_the_whole() -> None:
    packed = SumWeight(*parts())
    for dim, unit in ((0, 1), (1, 8)):
        shards = [packed.shard(rank, 3, dim, unit).dequantize() for rank in range(3)]
        assert torch.equal(torch.cat(shards, dim), packed.dequantize())
    with pytest.raises(InputError, match="unit=8"):
        packed.shard(0, 2, 1)


def test_two_shapes_are_refused() -> None:
    first, _ = parts()
    with pytest.raises(InputError, match="one shape"):
        SumWeight(first, RTN(4).encode(torch.randn(19, 36)))
