"""HQQ wins where outliers count for little, and loses where they count in full."""

import pytest
import torch

from tauten.core.errors import InputError
from tauten.formats.integer import grouped
from tauten.quantization import HQQ, RTN
from tauten.quantization.hqq import shrink


def heavy_tails(seed: int) -> torch.Tensor:
    return torch.randn(16, 160, generator=torch.Generator().manual_seed(seed)) ** 3 * 0.1


def errors(technique: HQQ | RTN, weight: torch.Tensor, power: float) -> torch.Tensor:
    """(rows, groups) sums of |error|^power."""
    change = technique.encode(weight).dequantize() - weight
    return grouped(change.abs().pow(power), 64).sum(-1)


@pytest.mark.parametrize("zero", ["none", "integer", "float"])
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_it_wins_on_the_lp_error_of_every_group(bits: int, zero: str) -> None:
    weight = heavy_tails(bits)
    ours, least_squares = HQQ(bits, 64, zero), RTN(bits, 64, zero)
    lp, nearest_lp = errors(ours, weight, 0.7), errors(least_squares, weight, 0.7)
    assert (lp <= nearest_lp * (1 + 1e-4)).all()
    assert lp.sum() < 0.99 * nearest_lp.sum()
    assert lp.sum() < 0.99 * errors(RTN(bits, 64, zero, "minmax"), weight, 0.7).sum()


@pytest.mark.parametrize("zero", ["none", "integer", "float"])
@pytest.mark.parametrize("bits", [2, 3])
def test_it_loses_on_squared_error_of_bell_shaped_weights(bits: int, zero: str) -> None:
    weight = torch.randn(32, 160, generator=torch.Generator().manual_seed(bits))
    least_squares = errors(RTN(bits, 64, zero), weight, 2)
    assert errors(HQQ(bits, 64, zero), weight, 2).sum() > 1.01 * least_squares.sum()


def test_shrinkage_forgives_large_errors_only() -> None:
    values = torch.linspace(-3, 3, 601)
    kept = shrink(values, 20.0)
    assert torch.equal(kept, -shrink(-values, 20.0))
    assert not kept[values.abs() < 0.09].any()
    large = values.abs() > 2
    torch.testing.assert_close(kept[large], values[large], rtol=0, atol=0.05)
    assert (kept.abs() <= values.abs()).all()


@pytest.mark.parametrize("zero", ["none", "integer", "float"])
def test_the_scale_of_the_weights_does_not_matter(zero: str) -> None:
    weight = heavy_tails(1)
    small, large = (HQQ(3, 64, zero).encode(weight * f).dequantize() for f in (1, 16))
    assert torch.equal(small * 16, large)


@pytest.mark.parametrize("bits", range(1, 9))
def test_a_constant_weight_is_kept(bits: int) -> None:
    weight = torch.full((3, 70), -0.75)
    assert torch.allclose(HQQ(bits).encode(weight).dequantize(), weight, rtol=2**-11)


@pytest.mark.parametrize(
    "knobs",
    [{"bits": 0}, {"group_size": -1}, {"zero": "half"}, {"rounds": 0}, {"activation": "int4"}],
    ids=str,
)
def test_bad_knobs_are_refused(knobs: dict[str, object]) -> None:
    with pytest.raises(InputError, match="hqq: " + next(iter(knobs))):
        HQQ(**knobs)  # type: ignore[arg-type]
