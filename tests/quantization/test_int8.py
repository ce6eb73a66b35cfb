"""8-bit weights with one scale a row, against the formula."""

import pytest
import torch

from tauten.core.errors import InputError
from tauten.quantization import Int8


def test_minmax_is_absmax_rounding_of_each_row() -> None:
    weight = torch.randn(9, 50, generator=torch.Generator().manual_seed(0))
    packed = Int8().encode(weight)
    scale = (weight.abs().amax(1, keepdim=True) / 127).half().float()
    codes = (weight / scale).round().clamp(-128, 127)
    assert torch.equal(packed.codes.view(torch.int8).float(), codes)
    assert torch.equal(packed.dequantize(), codes * scale)
    assert packed.size_bytes == 9 * 50 + 9 * 2


def test_clipping_lowers_the_error_of_heavy_tails() -> None:
    weight = torch.randn(9, 500, generator=torch.Generator().manual_seed(0)) ** 3
    clipped, spanned = (Int8(clip).encode(weight).dequantize() for clip in ("mse", "minmax"))
    errors = [(w - weight).square().sum(1) for w in (clipped, spanned)]
    assert (errors[0] <= errors[1] * (1 + 1e-5)).all()


def test_activations_are_eight_bits_too() -> None:
    assert Int8().activation_dtype == "int8"


def test_an_unknown_clip_is_refused() -> None:
    with pytest.raises(InputError, match="clip='max'"):
        Int8("max")
