"""Rows that are multiples of a few are found, and refused where there are none."""

import pytest
import torch
from torch import Tensor, nn

from tauten import InputError, ShareRows, compress
from tauten.core.errors import NotApplicableError
from tauten.formats.packed import from_spec
from tauten.formats.shared_rows import SharedRowsWeight
from tauten.solvers.row_sharing import share_rows, spread_rows


def redundant(noise: float, shape: tuple[int, ...] = (60, 40), few: int = 7) -> Tensor:
    """A weight whose rows are multiples of a few, of either sign, and noise."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(few, *shape[1:], generator=generator)
    factor = torch.randn(shape[0], generator=generator).view(-1, *(1 for _ in shape[1:]))
    whole = rows[torch.arange(shape[0]) % few] * factor
    return whole + noise * whole.std() * torch.randn(shape, generator=generator)


def error(packed: SharedRowsWeight, weight: Tensor) -> float:
    return float((packed.dequantize() - weight).norm() / weight.norm())


def test_multiples_are_found_exactly() -> None:
    packed = ShareRows(1e-5).encode(redundant(0))
    assert len(packed.shared) == 7 and error(packed, redundant(0)) < 1e-6


@pytest.mark.parametrize("noise", [0.01, 0.05, 0.1])
def test_the_bound_is_kept_with_the_rows_there_are(noise: float) -> None:
    weight = redundant(noise)
    packed = ShareRows(1.02 * noise).encode(weight)
    assert len(packed.shared) == 7 and error(packed, weight) <= 1.02 * noise


def test_averages_serve_better_than_the_rows_they_start_from() -> None:
    weight = redundant(0.3)
    start = weight[spread_rows(weight, 7)]

    def lost(iterations: int) -> float:
        shared, index, factor = share_rows(weight, start, iterations)
        return float((shared[index] * factor[:, None] - weight).norm())

    assert lost(20) < 0.9 * lost(0)
    assert lost(20) <= lost(3) <= lost(1) <= lost(0)


def test_one_shared_row_is_the_first_singular_vector() -> None:
    weight = torch.randn(30, 12, generator=torch.Generator().manual_seed(1)).double()
    shared, index, factor = share_rows(weight.float(), weight[:1].float(), 500)
    best = torch.linalg.svdvals(weight)[1:].norm()
    assert float((shared[index] * factor[:, None] - weight).norm()) <= 1.001 * float(best)


def test_unlike_rows_are_refused() -> None:
    weight = torch.randn(40, 30, generator=torch.Generator().manual_seed(2))
    with pytest.raises(NotApplicableError, match=r"20 shared rows for 40.*max_error=0\.01"):
        ShareRows().encode(weight)
    with pytest.raises(NotApplicableError, match="zero"):
        ShareRows().encode(torch.zeros(4, 5))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_bytes_are_shared_rows_index_and_scale(dtype: torch.dtype) -> None:
    packed = ShareRows(share=0.25).encode(redundant(0.1).to(dtype))
    assert packed.shared.dtype is dtype
    assert packed.size_bytes == 15 * 40 * dtype.itemsize + 60 + 60 * 4
    twin = from_spec(packed.spec())
    assert twin.size_bytes == packed.size_bytes
    twin.load_state_dict(packed.state_dict(), assign=True)
    assert torch.equal(twin.dequantize(), packed.dequantize())
    assert torch.equal(twin.narrow(0, 5, 9).dequantize(), packed.dequantize()[5:14])
    assert torch.equal(twin.narrow(1, 5, 9).dequantize(), packed.dequantize()[:, 5:14])


@pytest.mark.parametrize("rows", [256, 257])
def test_the_index_takes_no_byte_more_than_it_needs(rows: int) -> None:
    index = torch.arange(300) % rows
    packed = SharedRowsWeight.from_rows((300, 2), torch.ones(rows, 2), index, torch.ones(300))
    assert packed.index.element_size() == (1 if rows == 256 else 2)
    assert torch.equal(packed.index.long(), index)


@pytest.mark.parametrize("bias", [False, True])
def test_layers_compute_a_small_product(bias: bool) -> None:
    generator = torch.Generator().manual_seed(3)
    linear = nn.Linear(40, 60, bias=bias)
    linear.weight = nn.Parameter(redundant(0))
    packed = compress(linear, technique=ShareRows(1e-4))
    x = torch.randn(2, 3, 40, generator=generator)
    assert torch.allclose(packed(x), linear(x), atol=1e-4)
    convolution = nn.Conv2d(4, 60, 3, bias=bias, stride=2, padding=1)
    convolution.weight = nn.Parameter(redundant(0, (60, 4, 3, 3)))
    packed = compress(convolution, technique=ShareRows(1e-4))
    x = torch.randn(2, 4, 9, 9, generator=generator)
    assert torch.allclose(packed(x), convolution(x), atol=1e-4)


@pytest.mark.parametrize("knobs", [{"max_error": 0.0}, {"max_error": 1}, {"share": 1.0}])
def test_bad_knobs_are_refused(knobs: dict[str, object]) -> None:
    with pytest.raises(InputError, match=f"share_rows: {next(iter(knobs))}="):
        ShareRows(**knobs)  # type: ignore[arg-type]
