"""8-bit weights with a scale a row or group, against the formula and on outliers."""

import pytest
import torch

from tauten.core.errors import InputError
from tauten.quantization import Int8
from tauten.runtime import reference


def test_minmax_is_absmax_rounding_of_each_row() -> None:
    weight = torch.randn(9, 50, generator=torch.Generator().manual_seed(0))
    packed = Int8(0, "minmax").encode(weight)
    scale = (weight.abs().amax(1, keepdim=True) / 127).half().float()
    codes = (weight / scale).round().clamp(-128, 127)
    assert torch.equal(packed.codes.view(torch.int8).float(), codes)
    assert torch.equal(packed.dequantize(), codes * scale)
    assert packed.size_bytes == 9 * 50 + 9 * 2


def test_clipping_lowers_the_error_of_heavy_tails() -> None:
    weight = torch.randn(9, 500, generator=torch.Generator().manual_seed(0)) ** 3
    clipped, spanned = (Int8(0, clip).encode(weight).dequantize() for clip in ("mse", "minmax"))
    errors = [(w - weight).square().sum(1) for w in (clipped, spanned)]
    assert (errors[0] <= errors[1] * (1 + 1e-5)).all()


def test_groups_keep_an_outlier_of_the_activations_from_the_other_columns() -> None:
    generator = torch.Generator().manual_seed(0)
    weight, x = torch.randn(40, 256, generator=generator), torch.randn(20, 256, generator=generator)
    x[:, 7] *= 100

    def error(technique: Int8) -> float:
        product = reference.linear(x, technique.encode(weight), None, "int8")
        return float((product - x @ weight.t()).norm())

    assert error(Int8()) < 0.5 * error(Int8(0)), "of eight groups one has the outlier"


def test_a_convolution_has_one_scale_a_row() -> None:
    kernel = torch.randn(9, 50, 3, 3, generator=torch.Generator().manual_seed(0))
    ours, rows = Int8().encode(kernel), Int8(0).encode(kernel.flatten(1))
    assert ours.groups == 1 and torch.equal(ours.codes, rows.codes)


def test_activations_are_eight_bits_too() -> None:
    assert Int8().activation_dtype == "int8"


def test_bad_knobs_are_refused() -> None:
    with pytest.raises(InputError, match="clip='max'"):
        Int8(clip="max")
    with pytest.raises(InputError, match="group_size=-1"):
        Int8(-1)
