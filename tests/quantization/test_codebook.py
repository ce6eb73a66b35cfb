"""Codebooks win on outputs, lose on weights, and take the bytes they claim."""

import pytest
import torch
from layer_inputs import layer_inputs

from tauten.core.errors import InputError
from tauten.quantization import GPTQ, RTN, Codebook
from tauten.solvers.kmeans import kmeans_1d, nearest_code
from tauten.solvers.second_order import output_error


def bell(rows: int, columns: int, seed: int) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * 0.1


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_it_beats_kmeans_on_outputs_and_loses_on_weights(bits: int) -> None:
    weight, inputs = bell(24, 192, bits), layer_inputs(192, bits)
    ours = Codebook(bits).encode(weight, inputs).dequantize()
    naive = Codebook(bits).encode(weight).dequantize()
    errors = [output_error(w - weight, inputs.moment).sum() for w in (ours, naive)]
    assert errors[0] < 0.5 * errors[1]
    assert (ours - weight).norm() > (naive - weight).norm()


@pytest.mark.parametrize("bits", [2, 3])
def test_it_beats_integers_of_more_bytes_on_outputs(bits: int) -> None:
    weight, inputs = bell(24, 576, bits), layer_inputs(576, bits)
    ours = Codebook(bits).encode(weight, inputs)
    error = output_error(ours.dequantize() - weight, inputs.moment).sum()
    for rival in (RTN(bits), GPTQ(bits)):
        other = rival.encode(weight, inputs)
        assert ours.size_bytes < other.size_bytes
        assert error < output_error(other.dequantize() - weight, inputs.moment).sum()


def test_every_round_brings_outputs_nearer() -> None:
    weight, inputs = bell(16, 96, 1), layer_inputs(96, 1)
    errors = []
    for rounds in (0, 1, 4):
        packed = Codebook(3, rounds, damping=1e-6).encode(weight, inputs)
        errors.append(output_error(packed.dequantize() - weight, inputs.moment))
    # Each row by itself; rounding to float16 may cost a hair.
    assert (errors[1] <= errors[0] * 1.001).all() and (errors[2] <= errors[1] * 1.001).all()
    assert errors[1].sum() < 0.95 * errors[0].sum()


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_bytes_are_codes_and_a_book_a_row(bits: int) -> None:
    packed = Codebook(bits).encode(bell(10, 576, 0))
    assert packed.size_bytes == 10 * 576 * bits // 8 + 10 * 2**bits * 2
    assert packed.bits_per_weight == pytest.approx(bits + 16 * 2**bits / 576)


def test_without_inputs_each_row_has_its_own_kmeans() -> None:
    weight = bell(5, 300, 3) * torch.tensor([1, 2, 4, 8, 1e-3])[:, None]
    packed = Codebook(3).encode(weight)
    for row, book, codes in zip(weight, packed.codebook, packed.integer_codes(), strict=True):
        torch.testing.assert_close(book.float(), kmeans_1d(row, 8), rtol=2**-10, atol=1e-7)
        assert torch.equal(codes, nearest_code(row, book.float()))


def test_rows_are_worked_on_some_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = bell(7, 40, 4)
    whole = Codebook(2).encode(weight).dequantize()
    monkeypatch.setattr("tauten.quantization.codebook.CHUNK_WEIGHTS", 100)
    assert torch.equal(Codebook(2).encode(weight).dequantize(), whole)


def test_a_convolution_keeps_its_shape() -> None:
    weight = torch.randn(6, 4, 3, 3, generator=torch.Generator().manual_seed(3))
    assert Codebook(3).encode(weight, layer_inputs(36, 4)).shape == (6, 4, 3, 3)


@pytest.mark.parametrize("factor", [1e-9, 1e9])
def test_weights_beyond_the_range_of_halves_keep_their_relative_error(factor: float) -> None:
    weight, inputs = bell(4, 64, 5), layer_inputs(64, 5)
    errors = [
        float((Codebook(3).encode(w, inputs).dequantize() - w).norm() / w.norm())
        for w in (weight, weight * factor)
    ]
    assert errors[1] == pytest.approx(errors[0], rel=0.05)


@pytest.mark.parametrize(
    "knobs",
    [
        {"bits": 1},
        {"bits": 5},
        {"bits": 3.0},
        {"rounds": -1},
        {"damping": 0.0},
        {"activation": "x"},
    ],
    ids=str,
)
def test_bad_knobs_are_refused(knobs: dict[str, object]) -> None:
    with pytest.raises(InputError, match="codebook: " + next(iter(knobs))):
        Codebook(**knobs)  # type: ignore[arg-type]
