"""AWQ wins on the outputs of a layer, and loses on its weights."""

import pytest
import torch
from torch import Tensor

from tauten.core.errors import InputError
from tauten.core.inputs import LayerInputs
from tauten.quantization import AWQ, RTN
from tauten.solvers.second_order import output_error

CHANNELS = torch.arange(96)


def uneven_inputs(size: int = 96, tokens: int = 2000) -> LayerInputs:
    """A few columns are far stronger than the others."""
    x = torch.randn(tokens, size, generator=torch.Generator().manual_seed(1))
    x[:, ::16] *= 20
    return LayerInputs(x.t() @ x / tokens, tokens)


def weight_of(rows: int, seed: int) -> Tensor:
    return torch.randn(rows, 96, generator=torch.Generator().manual_seed(seed)) * 0.1


def change(technique: AWQ | RTN, weight: Tensor, inputs: LayerInputs, scale: Tensor) -> Tensor:
    """What encoding changes in the weight that the unscaled inputs see."""
    packed = technique.encode(weight * scale, inputs.divided(scale))
    return packed.dequantize() / scale - weight


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("zero", ["none", "integer", "float"])
def test_it_beats_rounding_on_outputs_and_loses_on_weights(bits: int, zero: str) -> None:
    weight, inputs = weight_of(24, bits), uneven_inputs()
    technique = AWQ(bits, 32, zero)
    scale = technique.scale([weight], inputs, CHANNELS)
    ours = change(technique, weight, inputs, scale)
    nearest = change(RTN(bits, 32, zero), weight, inputs, torch.ones(96))
    unscaled = change(technique, weight, inputs, torch.ones(96))
    lost, most, between = (output_error(c, inputs.moment).sum() for c in (ours, nearest, unscaled))
    assert lost < 0.95 * between and lost < 0.6 * most
    assert ours.norm() > nearest.norm()


def test_the_scale_serves_all_layers_that_read_the_inputs() -> None:
    """The loss of a scale is the sum over layers, so that a large one has more to say."""
    inputs, technique = uneven_inputs(), AWQ(3, 32)
    small, large = weight_of(24, 1) * 1e-3, weight_of(24, 2)
    together = technique.scale([small, large], inputs, CHANNELS)
    change_of = [change(technique, w, inputs, together) for w in (small, large)]
    alone = [change(technique, w, inputs, torch.ones(96)) for w in (small, large)]
    lost, most = (
        sum(output_error(c, inputs.moment).sum() for c in both) for both in (change_of, alone)
    )
    assert lost < most


def test_even_inputs_and_a_lattice_need_no_scale() -> None:
    """A weight that rounds without loss is left alone."""
    weight = torch.randint(-7, 8, (24, 96), generator=torch.Generator().manual_seed(4)).float()
    weight[:, ::32], weight[:, 1::32] = 7.0, -7.0
    scale = AWQ(4, 32, "none").scale([weight], uneven_inputs(), CHANNELS)
    assert torch.equal(scale, torch.ones(96))


def test_columns_of_one_channel_get_one_scale() -> None:
    channels = torch.arange(48).repeat(2)
    scale = AWQ(3, 32).scale([weight_of(24, 5)], uneven_inputs(), channels)
    assert torch.equal(scale[:48], scale[48:]) and scale.unique().numel() > 1


def test_second_order_rounding_makes_up_for_errors() -> None:
    mixing = torch.randn(96, 96, generator=torch.Generator().manual_seed(6))
    x = torch.randn(2000, 96, generator=torch.Generator().manual_seed(7)) @ mixing
    weight, inputs = weight_of(24, 8), LayerInputs(x.t() @ x / 2000, 2000)
    lost = [
        float(
            output_error(
                change(AWQ(3, 32, rounding=r), weight, inputs, torch.ones(96)), inputs.moment
            ).sum()
        )
        for r in ("nearest", "second_order")
    ]
    assert lost[1] < 0.7 * lost[0]


def test_without_inputs_it_rounds_to_nearest() -> None:
    weight = weight_of(8, 9)
    ours, nearest = AWQ(4, 32, "float").encode(weight), RTN(4, 32, "float").encode(weight)
    assert torch.equal(ours.dequantize(), nearest.dequantize())


@pytest.mark.parametrize(
    "knobs",
    [
        {"bits": 9},
        {"group_size": 0.5},
        {"zero": "some"},
        {"rounding": "down"},
        {"activation": "int4"},
    ],
)
def test_bad_knobs_are_refused(knobs: dict[str, object]) -> None:
    with pytest.raises(InputError, match="awq: " + next(iter(knobs))):
        AWQ(**knobs)  # type: ignore[arg-type]
