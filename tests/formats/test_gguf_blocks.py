"""Blocks of GGUF: bytes that we write are read by the gguf package as the same weight, bit for bit.

The package's `quants` module reads every type here; it writes only those of one level.
"""

import gguf
import numpy as np
import pytest
import torch
from gguf.quants import dequantize, quantize
from packed_weights import random_superblock

from tauten.core.errors import CorruptError, InputError, NotApplicableError
from tauten.formats.gguf_blocks import BLOCK_TYPES, from_gguf_bytes, gguf_type, to_gguf_bytes
from tauten.formats.integer import IntegerWeight
from tauten.formats.superblock import TwoLevelGrid
from tauten.quantization import RTN


def packed_of(name: str, shape: tuple[int, ...] = (6, 512)) -> IntegerWeight:
    """A random weight of a GGUF type, with every code."""
    block = BLOCK_TYPES[name]
    if block.scale_bits:
        return random_superblock(shape, block.grid)
    groups = (shape[0], shape[1] // 32)
    codes = torch.randint(0, 2**block.bits, shape, dtype=torch.uint8)
    zero = torch.randn(groups).half() if block.zero_kind == "float" else None
    return IntegerWeight.from_codes(shape, block.bits, 32, codes, torch.randn(groups).half(), zero)


def read_by_gguf(name: str, data: torch.Tensor) -> torch.Tensor:
    kind = gguf.GGMLQuantizationType[name]
    with np.errstate(all="ignore"):  # random halves may be infinite or no number
        return torch.from_numpy(dequantize(data.numpy(), kind))


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("name", BLOCK_TYPES)
def test_gguf_reads_what_we_write(name: str, interleaved: bool) -> None:
    packed = packed_of(name)
    weight = packed.dequantize()
    if interleaved:
        packed.interleave()
    assert gguf_type(packed) == name
    data = to_gguf_bytes(packed)
    block_size, block_bytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name]]
    assert data.shape == (6, 512 // block_size * block_bytes)
    assert torch.equal(read_by_gguf(name, data), weight)
    assert data.numel() == packed.size_bytes


@pytest.mark.parametrize("name", BLOCK_TYPES)
def test_we_read_any_bytes_as_gguf_does(name: str) -> None:
    data = torch.randint(0, 256, to_gguf_bytes(packed_of(name)).shape, dtype=torch.uint8)
    packed = from_gguf_bytes(name, data, (6, 512))
    ours, theirs = packed.dequantize(), read_by_gguf(name, data)
    finite = theirs.isfinite()
    assert torch.equal(ours[finite], theirs[finite]) and not ours[~finite].isfinite().any()
    assert torch.equal(to_gguf_bytes(packed), data)


@pytest.mark.parametrize("name", ["Q4_0", "Q8_0"])
def test_our_fit_beats_that_of_gguf_at_equal_bytes(name: str) -> None:
    weight = torch.randn(32, 512, generator=torch.Generator().manual_seed(1)) * 0.02
    packed = RTN(BLOCK_TYPES[name].bits, 32, "none").encode(weight)
    kind = gguf.GGMLQuantizationType[name]
    theirs = torch.from_numpy(dequantize(quantize(weight.numpy(), kind), kind))
    ours = read_by_gguf(name, to_gguf_bytes(packed))
    error, other = ((found - weight).square().sum() for found in (ours, theirs))
    assert error < (0.95 if name == "Q4_0" else 1.0) * other


def test_a_convolution_keeps_its_shape() -> None:
    packed = packed_of("Q3_K", (4, 64, 2, 2))
    twin = from_gguf_bytes("Q3_K", to_gguf_bytes(packed), (4, 64, 2, 2))
    assert torch.equal(twin.dequantize(), packed.dequantize())


def test_what_gguf_has_no_block_for_is_refused_with_the_reason() -> None:
    with pytest.raises(NotApplicableError, match="multiple of 256 columns, not 576"):
        to_gguf_bytes(packed_of("Q4_K", (2, 576)))
    with pytest.raises(NotApplicableError, match="Q4_K"):
        to_gguf_bytes(random_superblock((2, 512), TwoLevelGrid(3, 32, 256, 6, "float")))
    with pytest.raises(NotApplicableError, match="integer"):
        to_gguf_bytes(RTN(4, 32, "integer").encode(torch.randn(2, 64)))


def test_damaged_data_is_refused() -> None:
    data = to_gguf_bytes(packed_of("Q4_K"))
    for wrong in (data[:, :-1], data[:-1], data.short(), data.flatten()):
        with pytest.raises(CorruptError, match="Q4_K"):
            from_gguf_bytes("Q4_K", wrong, (6, 512))
    with pytest.raises(InputError, match="Q4_K"):
        from_gguf_bytes("IQ4_NL", data, (6, 512))
