"""Random packed weights, and exact products with them."""

import torch
from torch import Tensor

from tauten.formats.integer import IntegerWeight
from tauten.formats.superblock import SuperblockWeight, TwoLevelGrid, TwoLevelScales
from tauten.runtime import reference


def random_weight(
    shape: tuple[int, int], bits: int = 4, group_size: int = 32, zero_kind: str = "none"
) -> IntegerWeight:
    rows, columns = shape
    cells = (rows, -(-columns // (group_size or columns)))
    dtype = torch.float32 if rows == 5 else torch.float16
    scale = (torch.rand(cells) + 0.5).to(dtype)
    zero = None
    if zero_kind == "integer":
        zero = torch.randint(0, 2**bits, cells, dtype=torch.uint8)
    elif zero_kind == "float":
        zero = torch.randn(cells).to(dtype)
    codes = torch.randint(0, 2**bits, shape, dtype=torch.uint8)
    return IntegerWeight.from_codes(shape, bits, group_size, codes, scale, zero)


def random_superblock(shape: tuple[int, ...], grid: TwoLevelGrid) -> SuperblockWeight:
    rows, columns = shape[0], int(torch.Size(shape[1:]).numel())
    cells, blocks = (rows, grid.groups(columns)), (rows, grid.superblocks(columns))
    scales = TwoLevelScales(
        torch.randint(0, 2**grid.scale_bits, cells, dtype=torch.uint8), torch.rand(blocks).half()
    )
    if grid.zero_kind == "float":
        zero_codes = torch.randint(0, 2**grid.scale_bits, cells, dtype=torch.uint8)
        scales = scales._replace(zero_codes=zero_codes, super_zero=torch.rand(blocks).half())
    codes = torch.randint(0, 2**grid.bits, (rows, columns), dtype=torch.uint8)
    return SuperblockWeight.from_scales(shape, grid, codes, scales)


def exact_linear(
    x: Tensor, weight: IntegerWeight, bias: Tensor, activation: str
) -> tuple[Tensor, Tensor]:
    """The product in float64, and the size of its terms, that rounding is relative to."""
    if activation == "int8":
        missing = -x.shape[1] % weight.columns_per_group
        cells = torch.nn.functional.pad(x, (0, missing)).unflatten(1, (weight.groups, -1))
        codes, scale = reference.quantize_tokens(cells)
        x = (codes.double() * scale.double()).flatten(1)[:, : x.shape[1]]
    x, bias = x.double(), bias.double()
    size = x.abs().sum(1, keepdim=True) * weight.scale.max() * 2**weight.bits + bias.abs()
    return x @ weight.dequantize(torch.float64).T + bias, size
