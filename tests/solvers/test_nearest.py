"""Rounding in chunks is rounding at once."""

import pytest
import torch

from tauten.formats.integer import ZERO_KINDS
from tauten.solvers import nearest
from tauten.solvers.nearest import round_to_nearest


@pytest.mark.parametrize("chunk", [1, 100, 1000])
@pytest.mark.parametrize("zero", ZERO_KINDS)
def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch, zero: str, chunk: int) -> None:
    weight = torch.randn(11, 3, 13, generator=torch.Generator().manual_seed(0))
    whole = round_to_nearest(weight, 3, 8, zero, "mse")
    monkeypatch.setattr(nearest, "CHUNK_WEIGHTS", chunk)
    parts = round_to_nearest(weight, 3, 8, zero, "mse")
    assert torch.equal(parts.dequantize(), whole.dequantize())
    assert parts.spec() == whole.spec()


@pytest.mark.parametrize("zero", ZERO_KINDS)
def test_a_chunk_that_needs_float32_scales_is_kept_among_halves(
    monkeypatch: pytest.MonkeyPatch, zero: str
) -> None:
    weight = torch.randn(11, 40, generator=torch.Generator().manual_seed(0))
    quiet = round_to_nearest(weight, 3, 8, zero, "mse").dequantize()
    weight[4] *= 1e9
    monkeypatch.setattr(nearest, "CHUNK_WEIGHTS", 1)
    parts = round_to_nearest(weight, 3, 8, zero, "mse")
    assert parts.scale.dtype is torch.float32
    others = torch.arange(11) != 4
    assert torch.equal(parts.dequantize()[others], quiet[others])
    assert (parts.dequantize()[4] - weight[4]).norm() < 0.2 * weight[4].norm()


@pytest.mark.parametrize("zero", ZERO_KINDS)
@pytest.mark.parametrize("bits", range(1, 8))
def test_another_bit_always_lowers_the_error(bits: int, zero: str) -> None:
    weight = torch.randn(16, 64, generator=torch.Generator().manual_seed(bits))
    fewer, more = (round_to_nearest(weight, b, 32, zero, "mse") for b in (bits, bits + 1))
    assert (more.dequantize() - weight).norm() < (fewer.dequantize() - weight).norm()


def test_the_input_is_left_alone() -> None:
    weight = torch.randn(8, 40)
    before = weight.clone()
    round_to_nearest(weight, 4, 32, "float", "mse")
    assert torch.equal(weight, before)
