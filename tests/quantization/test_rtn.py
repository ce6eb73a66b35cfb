"""Round to nearest, against a grid that is known, and against its own rivals."""

import pytest
import torch

from tauten.core.errors import InputError
from tauten.core.inputs import LayerInputs
from tauten.formats.integer import IntegerWeight
from tauten.quantization import RTN

CLIPS = ("mse", "importance")


def q4_1_weight(seed: int) -> torch.Tensor:
    """Weights as GGUF's Q4_1 holds them: half scale and minimum a group of 32, 16 levels."""
    generator = torch.Generator().manual_seed(seed)
    scale = (torch.rand(24, 4, 1, generator=generator) * 0.1 + 0.001).half().float()
    minimum = (torch.randn(24, 4, 1, generator=generator) * 0.2).half().float()
    codes = torch.randint(0, 16, (24, 4, 32), generator=generator)
    codes[..., :2] = torch.tensor([0, 15])  # the ends of a block are its smallest and largest
    shuffled = codes[..., torch.randperm(32, generator=generator)]
    return (minimum + scale * shuffled).flatten(1)


@pytest.mark.parametrize("clip", ["mse", "minmax"])
@pytest.mark.parametrize("seed", range(5))
def test_a_q4_1_weight_is_recovered_exactly(seed: int, clip: str) -> None:
    weight = q4_1_weight(seed)
    packed = RTN(bits=4, group_size=32, zero="float", clip=clip).encode(weight)
    assert torch.equal(packed.dequantize(), weight)
    assert packed.bits_per_weight == 5


@pytest.mark.parametrize("bits", range(1, 9))
def test_knobs_reach_the_packed_weight(bits: int) -> None:
    weight = torch.randn(6, 40, generator=torch.Generator().manual_seed(0))
    packed = RTN(bits, 16, "integer").encode(weight)
    assert isinstance(packed, IntegerWeight)
    assert (packed.bits, packed.group_size, packed.zero_kind) == (bits, 16, "integer")
    assert packed.shape == (6, 40)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_an_offset_beats_symmetry_and_small_groups_beat_large(bits: int) -> None:
    generator = torch.Generator().manual_seed(bits)
    weight = torch.randn(32, 256, generator=generator) + 0.5

    def error(technique: RTN) -> float:
        return float((technique.encode(weight).dequantize() - weight).norm())

    assert error(RTN(bits, 64, "float")) < error(RTN(bits, 64, "none"))
    assert error(RTN(bits, 32)) < error(RTN(bits, 128)) < error(RTN(bits, 0))


@pytest.mark.parametrize("bits", [2, 3])
@pytest.mark.parametrize("zero", ["none", "integer", "float"])
def test_importance_serves_strong_inputs_at_the_cost_of_others(bits: int, zero: str) -> None:
    generator = torch.Generator().manual_seed(bits)
    weight, x = (torch.randn(n, 96, generator=generator) for n in (24, 2000))
    x[:, ::16] *= 20
    inputs = LayerInputs(x.t() @ x / 2000, 2000)
    assert RTN(bits, 32, zero, "importance").looks_at_inputs and not RTN().looks_at_inputs
    plain = RTN(bits, 32, zero).encode(weight, inputs).dequantize() - weight
    ours = RTN(bits, 32, zero, "importance").encode(weight, inputs).dequantize() - weight
    assert (ours @ x.t()).norm() < 0.9 * (plain @ x.t()).norm()
    assert ours.norm() > plain.norm()


def test_without_data_large_weights_count_more() -> None:
    weight = torch.randn(24, 96, generator=torch.Generator().manual_seed(0)) ** 3
    squares = weight.square()
    counts = squares + squares.mean(1, keepdim=True)
    plain, ours = (RTN(3, 32, clip=clip).encode(weight).dequantize() for clip in CLIPS)
    assert (counts * (ours - weight) ** 2).sum() < (counts * (plain - weight) ** 2).sum()


@pytest.mark.parametrize("size", [41, 1000, 10**9])
def test_a_group_beyond_the_row_is_the_row(size: int) -> None:
    weight = torch.randn(6, 40, generator=torch.Generator().manual_seed(0))
    whole = RTN(4, 0, "integer").encode(weight)
    assert torch.equal(RTN(4, size, "integer").encode(weight).dequantize(), whole.dequantize())


@pytest.mark.parametrize(
    "knobs",
    [
        {"bits": 0},
        {"bits": 9},
        {"bits": 4.0},
        {"bits": "4"},
        {"group_size": -1},
        {"group_size": 2.5},
        {"zero": "half"},
        {"clip": "max"},
        {"activation": "int4"},
    ],
    ids=str,
)
def test_a_knob_out_of_range_is_refused_by_name(knobs: dict[str, object]) -> None:
    with pytest.raises(InputError, match=f"rtn: {next(iter(knobs))}="):
        RTN(**knobs)  # type: ignore[arg-type]


def test_the_search_space_holds_only_what_is_allowed() -> None:
    space = RTN.space()
    for knob, values in space.items():
        assert [getattr(RTN(**{knob: value}), knob) for value in values] == list(values)


def test_clipping_is_what_the_knob_says() -> None:
    weight = torch.randn(16, 256, generator=torch.Generator().manual_seed(0))
    errors = {
        clip: float((RTN(3, 0, clip=clip).encode(weight).dequantize() - weight).norm())
        for clip in ("mse", "minmax")
    }
    assert RTN().clip == "mse"
    assert errors["mse"] < 0.9 * errors["minmax"]
