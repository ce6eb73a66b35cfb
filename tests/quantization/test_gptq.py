"""GPTQ wins on its own objective, the outputs of a layer, and not on the naive one."""

import pytest
import torch
from layer_inputs import layer_inputs
from torch import nn

from tauten.core.errors import InputError
from tauten.core.inputs import BlockExamples, LayerInputs
from tauten.quantization import GPTQ, RTN
from tauten.solvers.second_order import output_error


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("zero", ["none", "integer", "float"])
def test_it_beats_rounding_on_outputs_and_loses_on_weights(bits: int, zero: str) -> None:
    weight = torch.randn(24, 96, generator=torch.Generator().manual_seed(bits)) * 0.1
    inputs = layer_inputs(96, bits)
    ours = GPTQ(bits, 32, zero).encode(weight, inputs).dequantize()
    nearest = RTN(bits, 32, zero).encode(weight).dequantize()
    error = output_error(ours - weight, inputs.moment).sum()
    most = {1: 0.99, 2: 0.7}.get(bits, 0.5)  # few bits leave little to choose
    assert error < most * output_error(nearest - weight, inputs.moment).sum()
    assert (ours - weight).norm() > (nearest - weight).norm()


@pytest.mark.parametrize("zero", ["none", "integer", "float"])
def test_every_round_brings_outputs_nearer(zero: str) -> None:
    weight = torch.randn(24, 96, generator=torch.Generator().manual_seed(0)) * 0.1
    inputs, errors = layer_inputs(96, 0), []
    for rounds in range(3):
        packed = GPTQ(3, 32, zero, damping=1e-6, rounds=rounds).encode(weight, inputs)
        errors.append(output_error(packed.dequantize() - weight, inputs.moment))
    assert (errors[1] <= errors[0] * 1.001).all() and (errors[2] <= errors[1] * 1.001).all()
    assert errors[1].sum() < 0.95 * errors[0].sum()


def test_without_inputs_it_rounds_to_nearest() -> None:
    weight = torch.randn(8, 64, generator=torch.Generator().manual_seed(1))
    ours, nearest = GPTQ(4, 32, "float").encode(weight), RTN(4, 32, "float").encode(weight)
    assert torch.equal(ours.dequantize(), nearest.dequantize())


def test_independent_inputs_of_equal_strength_give_nearest_rounding() -> None:
    weight = torch.randn(8, 64, generator=torch.Generator().manual_seed(2))
    plain = LayerInputs(torch.eye(64), 1000)
    ours = GPTQ(3, 32, "none", rounds=0).encode(weight, plain)
    nearest = RTN(3, 32, "none").encode(weight)
    assert torch.equal(ours.dequantize(), nearest.dequantize())


def test_a_convolution_keeps_its_shape() -> None:
    weight = torch.randn(6, 4, 3, 3, generator=torch.Generator().manual_seed(3))
    packed = GPTQ(4, 0).encode(weight, layer_inputs(36, 4))
    assert packed.shape == (6, 4, 3, 3)


def test_correction_makes_up_for_moved_inputs() -> None:
    generator = torch.Generator().manual_seed(5)
    original = torch.randn(4000, 32, generator=generator) @ torch.randn(32, 32, generator=generator)
    moved = original * 0.9 + 0.2 * torch.randn(4000, 32, generator=generator)
    weight = torch.randn(16, 32, generator=generator)
    shift = (original - moved).t() @ moved / 4000
    inputs = LayerInputs(moved.t() @ moved / 4000, 4000, shift)

    def error(correction: float) -> float:
        found = GPTQ(4, 0, correction=correction).encode(weight, inputs).dequantize()
        return float((moved @ found.t() - original @ weight.t()).norm())

    assert error(1.0) < 0.8 * error(0.0)


@pytest.mark.parametrize(("moved", "tokens", "best"), [(1.0, 400, 0.5), (-1.0, 400, 0.0)])
def test_strength_is_what_serves_held_out_tokens_best(
    moved: float, tokens: int, best: float
) -> None:
    """Where the shift that was observed isn't that of the tokens held out, none is corrected."""
    block, inputs, examples = moved_block(tokens, moved)
    weight = block.weight.detach().clone()
    with torch.no_grad():
        found = GPTQ(3, 32, correction="auto").encode_block(block, {"": inputs}, examples)
    expected = GPTQ(3, 32, correction=best).encode(weight, inputs)
    assert torch.equal(found[""].dequantize(), expected.dequantize())


def test_without_tokens_enough_or_held_out_nothing_is_corrected() -> None:
    for tokens, held_out in ((200, 1), (400, 0)):
        block, inputs, examples = moved_block(tokens, 1.0, held_out)
        technique = GPTQ(3, 32, correction="auto")
        assert technique.encode_block(block, {"": inputs}, examples) == {}
        weight = block.weight.detach()
        plain = GPTQ(3, 32).encode(weight, inputs)
        assert torch.equal(technique.encode(weight, inputs).dequantize(), plain.dequantize())


def moved_block(
    tokens: int, moved: float, held_out: int = 1
) -> tuple[nn.Linear, LayerInputs, BlockExamples]:
    """A layer whose inputs are 0.7 of the original's; `moved` is the sign that was observed."""
    torch.manual_seed(4)
    block, original = nn.Linear(32, 16, bias=False), torch.randn(2, tokens, 32)
    given = 0.7 * original
    shift = moved * (original[0] - given[0]).t() @ given[0] / tokens
    inputs = LayerInputs(given[0].t() @ given[0] / tokens, tokens, shift)
    targets = list(block(original).detach())
    examples = BlockExamples(lambda layer, i: layer(given[i]), targets, [None, None], held_out)
    return block, inputs, examples


@pytest.mark.parametrize(
    "knobs",
    [
        {"bits": 0},
        {"bits": 2.0},
        {"group_size": -1},
        {"zero": "some"},
        {"damping": 0.0},
        {"correction": 1.5},
        {"correction": "some"},
        {"rounds": -1},
        {"activation": "int4"},
    ],
)
def test_bad_knobs_are_refused(knobs: dict[str, object]) -> None:
    with pytest.raises(InputError, match="gptq: " + next(iter(knobs))):
        GPTQ(**knobs)  # type: ignore[arg-type]
