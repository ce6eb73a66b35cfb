"""Shared weights: the bound holds, with as few values as it can."""

import pytest
import torch
from layer_inputs import layer_inputs
from torch import nn

import tauten
from tauten.compression import ShareKMeans, share_kmeans
from tauten.core.errors import InputError, NotApplicableError
from tauten.core.inputs import LayerInputs
from tauten.formats.codebook import CodebookWeight
from tauten.quantization import RTN


def weight_of(kind: str, shape: tuple[int, ...] = (48, 64)) -> torch.Tensor:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    if kind == "heavy tails":
        return weight**3
    if kind == "outlier":
        weight.view(-1)[5] = 1000
    return weight * {"tiny": 1e-8, "huge": 1e6}.get(kind, 0.02)


def relative_error(weight: torch.Tensor, technique: ShareKMeans | RTN) -> float:
    packed = technique.encode(weight)
    return float((packed.dequantize().double() - weight.double()).norm() / weight.double().norm())


@pytest.mark.parametrize("max_error", [0.01, 0.02, 0.05, 0.1, 0.3])
@pytest.mark.parametrize("kind", ["normal", "heavy tails", "outlier", "tiny", "huge"])
def test_the_error_stays_within_its_bound(kind: str, max_error: float) -> None:
    weight = weight_of(kind)
    assert relative_error(weight, ShareKMeans(max_error)) <= max_error


def test_the_bound_holds_for_weights_that_were_only_sampled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(share_kmeans, "SAMPLE", 1000)
    weight = weight_of("normal", (128, 104))
    weight[:, 1::13] *= 3
    # Over the sample, which its centres fit too well, 5 bits leave 0.063; over all, 0.076.
    assert relative_error(weight, ShareKMeans(0.07)) <= 0.07


@pytest.mark.parametrize("max_error", [0.01, 0.05, 0.2])
def test_one_bit_less_would_break_the_bound(max_error: float) -> None:
    weight = weight_of("normal")
    bits = ShareKMeans(max_error).encode(weight).bits
    assert bits == 2 or relative_error(weight, ShareKMeans(bits=bits - 1)) > max_error


def test_a_looser_bound_takes_no_more_bytes() -> None:
    weight = weight_of("heavy tails")
    sizes = [ShareKMeans(e).encode(weight).size_bytes for e in (0.01, 0.03, 0.1, 0.3)]
    assert sizes == sorted(sizes, reverse=True) and sizes[0] > sizes[-1]


@pytest.mark.parametrize("bits", range(1, 9))
def test_fixed_bits_are_kept_whatever_the_error(bits: int) -> None:
    packed = ShareKMeans(max_error=1e-6, bits=bits).encode(weight_of("heavy tails"))
    assert packed.bits == bits
    assert packed.dequantize().unique().numel() <= 2**bits


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_shared_values_beat_a_uniform_grid_of_the_same_size(bits: int) -> None:
    weight = weight_of("normal")
    uniform = min(relative_error(weight, RTN(bits, 0, z)) for z in ("float", "none", "integer"))
    whole = weight.flatten()[None]  # one grid for the tensor, as there is one codebook
    uniform = max(uniform, relative_error(whole, RTN(bits, 0, "float")))
    assert relative_error(weight, ShareKMeans(bits=bits)) < uniform


def test_weights_that_are_shared_already_come_back_exactly() -> None:
    values = torch.tensor([-0.5, 0.0, 0.25, 1.0])
    codes = torch.randint(0, 4, (16, 3, 3, 3), generator=torch.Generator().manual_seed(0))
    packed = ShareKMeans(0.001).encode(values[codes])
    assert packed.bits == 2
    assert torch.equal(packed.dequantize(), values[codes])


def test_all_zeros() -> None:
    packed = ShareKMeans().encode(torch.zeros(4, 5))
    assert packed.dequantize().tolist() == torch.zeros(4, 5).tolist()


def test_a_bound_that_256_values_cannot_keep_is_refused() -> None:
    with pytest.raises(NotApplicableError, match="max_error=1e-06"):
        ShareKMeans(1e-6).encode(weight_of("normal"))


@pytest.mark.parametrize(
    "knobs",
    [
        {"max_error": 0},
        {"max_error": 1},
        {"bits": 9},
        {"bits": 2.0},
        {"book_rows": -1},
        {"activation": "x"},
    ],
)
def test_a_knob_out_of_range_is_refused_by_name(knobs: dict[str, object]) -> None:
    with pytest.raises(InputError, match=f"share_kmeans: {next(iter(knobs))}="):
        ShareKMeans(**knobs)  # type: ignore[arg-type]


@pytest.mark.parametrize("book_rows", [1, 3, 16, 40, 100])
def test_smaller_groups_are_nearer_and_take_a_book_each(book_rows: int) -> None:
    weight = weight_of("normal") * torch.logspace(-1, 0, len(weight_of("normal")))[:, None]
    technique = ShareKMeans(bits=3, book_rows=book_rows)
    packed, books = technique.encode(weight), -(-len(weight) // book_rows)
    assert packed.codebook.shape == (books, 8)
    assert packed.size_bytes == packed.codes.nbytes + books * 8 * 2
    for start in range(0, len(weight), book_rows):
        alone = ShareKMeans(bits=3).encode(weight[start : start + book_rows])
        assert torch.equal(packed.dequantize()[start : start + book_rows], alone.dequantize())
    if books > 1:
        assert relative_error(weight, technique) < relative_error(weight, ShareKMeans(bits=3))


def test_books_a_row_keep_the_bound_with_fewer_values() -> None:
    weight = weight_of("normal") * torch.logspace(-2, 0, len(weight_of("normal")))[:, None]
    by_row = ShareKMeans(0.05, book_rows=1)
    assert relative_error(weight, by_row) <= 0.05
    assert by_row.encode(weight).bits < ShareKMeans(0.05).encode(weight).bits


@pytest.mark.parametrize("book_rows", [0, 1])
def test_strong_inputs_count_more(book_rows: int) -> None:
    inputs = layer_inputs(64, 1)
    strength = inputs.moment.diagonal()
    weight = weight_of("normal") / strength.sqrt()  # as many rows of networks are

    def lost(packed: CodebookWeight) -> float:
        return float(((packed.dequantize() - weight).square() * strength).sum())

    technique = ShareKMeans(bits=3, book_rows=book_rows)
    assert lost(technique.encode(weight, inputs)) < 0.95 * lost(technique.encode(weight))
    nothing = LayerInputs(torch.zeros_like(inputs.moment), 10)
    same = technique.encode(weight, nothing).dequantize()
    assert torch.equal(same, technique.encode(weight).dequantize())


def test_data_is_looked_at_unless_told_not_to() -> None:
    torch.manual_seed(0)
    model, data = nn.Linear(64, 48), [torch.randn(600, 64) * torch.logspace(-1, 1, 64)]

    def shared(technique: ShareKMeans, data: list[torch.Tensor] | None) -> torch.Tensor:
        found: torch.Tensor = tauten.compress(model, technique=technique, data=data).weight
        return found

    plain = shared(ShareKMeans(bits=3), None)
    assert torch.equal(shared(ShareKMeans(bits=3, weighted=False), data), plain)
    assert not torch.equal(shared(ShareKMeans(bits=3), data), plain)


@pytest.mark.parametrize("book_rows", [0, 1])
def test_activations_are_rounded_where_that_is_asked_for(book_rows: int) -> None:
    layer, x = nn.Linear(64, 48), torch.randn(5, 64, generator=torch.Generator().manual_seed(0))
    layer.weight = nn.Parameter(weight_of("normal"))
    outputs = {}
    for activation in ("float", "int8"):
        technique = ShareKMeans(bits=4, book_rows=book_rows, activation=activation)
        packed = tauten.compress(layer, technique=technique)
        assert packed.activation == activation
        with torch.no_grad():
            outputs[activation] = packed(x)
    lost = (outputs["int8"] - outputs["float"]).norm() / outputs["float"].norm()
    assert 0 < lost < 0.02
