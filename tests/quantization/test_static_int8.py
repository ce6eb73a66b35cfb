"""Static int8 on small layers: its steps, its corrected biases, and what it refuses."""

import pytest
import torch
from torch import nn

import tauten
from tauten.core.errors import InputError
from tauten.core.inputs import LayerInputs
from tauten.models.packing import packed_modules
from tauten.quantization import RTN
from tauten.quantization.static_int8 import StaticInt8, mean_output_change


def test_steps_and_biases_are_those_of_the_inputs_seen() -> None:
    torch.manual_seed(0)
    model, x = (
        nn.Sequential(nn.Linear(40, 20, bias=False), nn.ReLU(), nn.Linear(20, 40)),
        torch.rand(64, 40),
    )
    packed = dict(packed_modules(tauten.quantize(model, technique=StaticInt8("minmax"), data=[x])))
    first = packed["0"]
    assert first.activation == "static" and first.bias is not None
    assert float(first.step) == pytest.approx(float(x.max()) / 127, rel=4e-3)
    lost = (x @ (model[0].weight - first.weight).t()).mean(0)
    assert torch.allclose(first.bias, lost, atol=1e-6)
    plain = StaticInt8(bias_correction=False)
    assert dict(packed_modules(tauten.quantize(model, technique=plain, data=[x])))["0"].bias is None


def test_correction_keeps_the_mean_output() -> None:
    torch.manual_seed(1)
    weight, x = torch.randn(20, 40), torch.rand(500, 40) + 1
    rough = RTN(3, 0, "none").encode(weight)
    change = mean_output_change(weight, rough, x.mean(0))
    outputs = x @ rough.dequantize().t() + change
    assert torch.allclose(outputs.mean(0), (x @ weight.t()).mean(0), atol=1e-4)


def test_without_inputs_activations_are_rounded_as_they_come() -> None:
    assert StaticInt8().activation_step(None) is None
    assert StaticInt8().activation_step(LayerInputs(torch.eye(3), 5)) is None
    packed = dict(
        packed_modules(tauten.quantize(nn.Sequential(nn.Linear(40, 20)), technique=StaticInt8()))
    )
    assert packed["0"].activation == "int8"


@pytest.mark.parametrize("knobs", [{"observer": "max"}, {"percentile": 0.0}, {"percentile": 1.1}])
def test_bad_knobs_are_refused(knobs: dict[str, object]) -> None:
    with pytest.raises(InputError, match="static_int8: " + next(iter(knobs))):
        StaticInt8(**knobs)  # type: ignore[arg-type]
