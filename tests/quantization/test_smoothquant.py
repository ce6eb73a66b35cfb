"""SmoothQuant against its formula, and on the outputs of a layer with outliers."""

import pytest
import torch
from torch import Tensor

from tauten.core.errors import InputError
from tauten.core.inputs import LayerInputs
from tauten.quantization import Int8, SmoothQuant
from tauten.runtime import reference

CHANNELS = torch.arange(64)


def outliers() -> Tensor:
    """Inputs of which two columns are 50 times the others."""
    x = torch.randn(300, 64, generator=torch.Generator().manual_seed(1))
    x[:, [5, 40]] *= 50
    return x


def inputs_of(x: Tensor) -> LayerInputs:
    return LayerInputs(x.t() @ x / len(x), len(x), None, x.abs().amax(0), x)


WEIGHT = torch.randn(48, 64, generator=torch.Generator().manual_seed(2)) * 0.1


def lost(technique: Int8 | SmoothQuant, x: Tensor, scale: Tensor) -> float:
    """Relative error of the product with int8 weights and activations."""
    packed, exact = technique.encode(WEIGHT * scale), x @ WEIGHT.t()
    return float((reference.linear(x / scale, packed, None, "int8") - exact).norm() / exact.norm())


def test_a_given_strength_is_the_formula() -> None:
    x = outliers()
    scale = SmoothQuant(0.7).scale([WEIGHT, 2 * WEIGHT], inputs_of(x), CHANNELS)
    expected = x.abs().amax(0) ** 0.7 / (2 * WEIGHT).abs().amax(0) ** 0.3
    torch.testing.assert_close(scale, expected / expected.log().mean().exp())


@pytest.mark.parametrize("group_size", [0, 32])
def test_it_beats_int8_where_there_are_outliers(group_size: int) -> None:
    x, technique = outliers(), SmoothQuant(group_size=group_size)
    scale = technique.scale([WEIGHT], inputs_of(x), CHANNELS)
    assert lost(technique, x, scale) < 0.5 * lost(technique, x, torch.ones(64))
    assert lost(technique, x, scale) < 0.5 * lost(Int8(), x, torch.ones(64))
    for strength in (0.25, 0.5, 0.75):
        fixed = SmoothQuant(strength, group_size).scale([WEIGHT], inputs_of(x), CHANNELS)
        assert lost(technique, x, scale) <= lost(technique, x, fixed)


def test_it_loses_on_the_weights() -> None:
    scale = SmoothQuant().scale([WEIGHT], inputs_of(outliers()), CHANNELS)
    smoothed = SmoothQuant().encode(WEIGHT * scale).dequantize() / scale
    assert (smoothed - WEIGHT).norm() > (Int8().encode(WEIGHT).dequantize() - WEIGHT).norm()


def test_without_outliers_it_is_not_worse_than_int8() -> None:
    x = torch.randn(300, 64, generator=torch.Generator().manual_seed(3))
    scale = SmoothQuant().scale([WEIGHT], inputs_of(x), CHANNELS)
    most = 1.01  # it chooses by a sample
    assert lost(SmoothQuant(), x, scale) <= most * lost(Int8(), x, torch.ones(64))


def test_columns_of_one_channel_get_one_scale() -> None:
    channels = torch.arange(32).repeat(2)
    scale = SmoothQuant().scale([WEIGHT], inputs_of(outliers()), channels)
    assert torch.equal(scale[:32], scale[32:]) and scale.unique().numel() > 1


def test_without_data_it_is_int8() -> None:
    ours, plain = SmoothQuant().encode(WEIGHT), Int8().encode(WEIGHT)
    assert torch.equal(ours.dequantize(), plain.dequantize())
    assert SmoothQuant().activation_dtype == "int8"


@pytest.mark.parametrize("knobs", [{"strength": 1.5}, {"group_size": -1}])
def test_bad_knobs_are_refused(knobs: dict[str, float]) -> None:
    with pytest.raises(InputError, match="smoothquant: " + next(iter(knobs))):
        SmoothQuant(**knobs)  # type: ignore[arg-type]
