"""What weights are said to take in memory, against what they hold once they were multiplied by."""

import pytest
import torch
from packed_weights import random_superblock, random_weight

from tauten.formats.codebook import CodebookWeight
from tauten.formats.packed import PackedWeight, from_spec
from tauten.formats.sparse import SparseWeight
from tauten.formats.sum import SumWeight
from tauten.formats.superblock import TwoLevelGrid
from tauten.formats.ternary import TernaryWeight
from tauten.runtime import kernels

SHAPE = (37, 160)


def weights() -> dict[str, PackedWeight]:
    torch.manual_seed(0)
    codes = torch.randint(0, 8, SHAPE, dtype=torch.uint8)
    signs = torch.randint(-1, 2, SHAPE, dtype=torch.int8)
    scale = torch.rand(37, 5).half()
    pairs = torch.tensor([True, False, False, True]).repeat(37, 40)
    k_quant = TwoLevelGrid(4, 32, 160, 6, "float")
    return {
        "integer": random_weight(SHAPE),
        "integer zeros": random_weight(SHAPE, 3, 64, "integer"),
        "float zeros, a row": random_weight(SHAPE, 8, 0, "float"),
        "groups by rows": random_weight(SHAPE, 4, 16),
        "two levels": random_superblock(SHAPE, k_quant),
        "two levels, symmetric": random_superblock(SHAPE, TwoLevelGrid(6, 32, 0, 8, "none")),
        "ternary": TernaryWeight.from_signs(SHAPE, 32, signs, scale),
        "a book": CodebookWeight.from_codes(SHAPE, 3, codes, torch.randn(1, 8)),
        "a book a row": CodebookWeight.from_codes(SHAPE, 3, codes, torch.randn(37, 8).half()),
        "books of 6 bits": CodebookWeight.from_codes(SHAPE, 6, codes, torch.randn(37, 64)),
        "sparse": SparseWeight.from_dense(torch.randn(SHAPE), codes > 2),
        "2:4": SparseWeight.from_codes(pairs, 3, 32, codes, scale, None),
        "sum": SumWeight(random_weight(SHAPE), random_superblock(SHAPE, k_quant)),
    }


@pytest.mark.parametrize("name", weights())
def test_as_many_bytes_as_told_before(name: str) -> None:
    weight = weights()[name]
    told = kernels.memory_bytes(weight)
    assert kernels.memory_bytes(from_spec(weight.spec())) == told
    kernels.linear(torch.randn(3, SHAPE[1]), weight)
    assert kernels.memory_bytes(weight) == told == sum(b.nbytes for b in weight.buffers())
