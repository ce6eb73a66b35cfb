"""K-quants win on the outputs of a layer, and stand on the grids of GGUF."""

import pytest
import torch

from tauten.core.errors import InputError
from tauten.core.inputs import LayerInputs
from tauten.formats.gguf_blocks import gguf_type
from tauten.quantization import GPTQ, KQuant
from tauten.solvers.second_order import output_error

K_TYPES = ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"]


def layer_inputs(size: int, seed: int, tokens: int = 2000) -> LayerInputs:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(size, size, generator=generator) * torch.logspace(-0.5, 0.5, size)
    inputs = torch.randn(tokens, size, generator=generator) @ mixing
    return LayerInputs(inputs.t() @ inputs / tokens, tokens)


def random_weight(seed: int, shape: tuple[int, ...] = (24, 256)) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 0.02


@pytest.mark.parametrize("name", K_TYPES)
def test_it_beats_rounding_on_outputs_and_loses_on_weights(name: str) -> None:
    weight, inputs = random_weight(1), layer_inputs(256, 1)
    technique = KQuant.gguf(name)
    ours, nearest = technique.encode(weight, inputs), technique.encode(weight)
    assert gguf_type(ours) == gguf_type(nearest) == name
    change, other = ours.dequantize() - weight, nearest.dequantize() - weight
    most = 0.7 if technique.bits == 2 else 0.5
    assert (
        output_error(change, inputs.moment).sum() < most * output_error(other, inputs.moment).sum()
    )
    assert change.norm() > other.norm()


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_it_beats_gptq_at_equal_bytes(bits: int) -> None:
    weight, inputs = random_weight(2, (24, 512)), layer_inputs(512, 2)
    ours = KQuant(bits, 32, 0, 4).encode(weight, inputs)
    peer = GPTQ(bits, 64).encode(weight, inputs)
    assert ours.size_bytes < 1.02 * peer.size_bytes
    ours_error, peer_error = (
        output_error(packed.dequantize() - weight, inputs.moment).sum() for packed in (ours, peer)
    )
    assert ours_error < peer_error


@pytest.mark.parametrize("zero", ["float", "none"])
def test_each_round_lowers_the_output_error(zero: str) -> None:
    weight, inputs = random_weight(5), layer_inputs(256, 5)
    packed = [KQuant(3, 32, 128, 4, zero, rounds=n).encode(weight, inputs) for n in (0, 1, 3)]
    errors = [
        float(output_error(some.dequantize() - weight, inputs.moment).sum()) for some in packed
    ]
    assert errors[2] < errors[1] < errors[0]


@pytest.mark.parametrize("zero", ["float", "none"])
def test_a_row_may_end_within_a_superblock(zero: str) -> None:
    weight, inputs = random_weight(3, (6, 330)), layer_inputs(330, 3)
    packed = KQuant(4, 32, 256, 6, zero).encode(weight, inputs)
    assert (packed.dequantize() - weight).norm() < 0.25 * weight.norm()


def test_a_convolution_keeps_its_shape() -> None:
    packed = KQuant(4, 16, 32).encode(random_weight(4, (6, 4, 3, 3)), layer_inputs(36, 4))
    assert packed.dequantize().shape == (6, 4, 3, 3)


@pytest.mark.parametrize(
    "knobs",
    [
        {"bits": 0},
        {"bits": 2.0},
        {"group_size": 0},
        {"superblock": 100},
        {"scale_bits": 1},
        {"zero": "integer"},
        {"damping": 0.0},
        {"rounds": -1},
        {"activation": "int4"},
    ],
)
def test_bad_knobs_are_refused(knobs: dict[str, object]) -> None:
    with pytest.raises(InputError, match="kquant: .*" + next(iter(knobs))):
        KQuant(**knobs)  # type: ignore[arg-type]


def test_a_type_that_is_no_k_quant_is_refused() -> None:
    with pytest.raises(InputError, match=r"Q4_0.*Q2_K"):
        KQuant.gguf("Q4_0")
