"""AdaRound wins on its own objective, the outputs of a layer, and not on the naive one."""

import pytest
import torch

from tauten.core.errors import InputError
from tauten.core.inputs import LayerInputs
from tauten.quantization import RTN, AdaRound
from tauten.solvers.second_order import output_error


def layer_inputs(size: int, seed: int, tokens: int = 1000) -> LayerInputs:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(size, size, generator=generator) * torch.logspace(-0.5, 0.5, size)
    inputs = torch.randn(tokens, size, generator=generator) @ mixing
    return LayerInputs(inputs.t() @ inputs / tokens, tokens)


@pytest.mark.parametrize("bits", [1, 2, 4])
@pytest.mark.parametrize("zero", ["none", "integer", "float"])
def test_it_beats_rounding_on_outputs_and_loses_on_weights(bits: int, zero: str) -> None:
    weight = torch.randn(12, 64, generator=torch.Generator().manual_seed(bits)) * 0.1
    inputs = layer_inputs(64, bits)
    ours = AdaRound(bits, 32, zero, iterations=100).encode(weight, inputs).dequantize()
    nearest = RTN(bits, 32, zero).encode(weight).dequantize()
    error = output_error(ours - weight, inputs.moment).sum()
    most = {1: 0.9, 2: 0.85}.get(bits, 0.8)  # few bits leave little to choose
    assert error < most * output_error(nearest - weight, inputs.moment).sum()
    assert (ours - weight).norm() > (nearest - weight).norm()


def test_a_convolution_keeps_its_shape_and_no_inputs_mean_nearest() -> None:
    weight = torch.randn(6, 4, 3, 3, generator=torch.Generator().manual_seed(3))
    technique = AdaRound(4, 0, "float", iterations=5)
    assert technique.encode(weight, layer_inputs(36, 4)).shape == weight.shape
    plain = RTN(4, 0, "float").encode(weight).dequantize()
    assert torch.equal(technique.encode(weight).dequantize(), plain)


@pytest.mark.parametrize(
    "knobs",
    [
        {"bits": 0},
        {"group_size": -1},
        {"zero": "some"},
        {"iterations": 0},
        {"activation": "int4"},
    ],
)
def test_bad_knobs_are_refused(knobs: dict[str, object]) -> None:
    with pytest.raises(InputError, match="adaround: " + next(iter(knobs))):
        AdaRound(**knobs)  # type: ignore[arg-type]
