"""Codebook weights, against plain indexing."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tauten.core.errors import InputError
from tauten.formats.codebook import CodebookWeight
from tauten.formats.packed import from_spec
from tauten.runtime import kernels

BITS = range(1, 9)
DTYPES = (torch.float16, torch.float32)


def sample(
    bits: int, books: int = 1, dtype: torch.dtype = torch.float16, shape: tuple[int, ...] = (6, 37)
) -> tuple[CodebookWeight, torch.Tensor]:
    """A packed weight and the float32 weight it stands for."""
    generator = torch.Generator().manual_seed(bits)
    columns = torch.Size(shape[1:]).numel()
    codes = torch.randint(0, 2**bits, (shape[0], columns), generator=generator)
    book = torch.randn(books, 2**bits, generator=generator).to(dtype)
    packed = CodebookWeight.from_codes(shape, bits, codes.to(torch.uint8), book)
    row = torch.arange(shape[0])[:, None] if books > 1 else torch.zeros(1, 1, dtype=torch.int64)
    return packed, book.float()[row, codes].view(shape)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("books", [1, 6])
@pytest.mark.parametrize("bits", BITS)
def test_weights_are_those_the_codes_point_at(bits: int, books: int, dtype: torch.dtype) -> None:
    packed, weight = sample(bits, books, dtype)
    assert torch.equal(packed.dequantize(), weight)
    index = torch.tensor([5, 0, 5])
    assert torch.equal(packed.dequantize_rows(index), weight[index])
    assert torch.equal(packed.dequantize_rows(slice(2, 4)), weight[2:4])
    for wrong in (-1, 6):
        with pytest.raises(IndexError):
            packed.dequantize_rows(torch.tensor([wrong]))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("books", [1, 6])
@pytest.mark.parametrize("bits", BITS)
def test_save_and_load_with_the_promised_bytes(
    tmp_path: Path, bits: int, books: int, dtype: torch.dtype
) -> None:
    packed, weight = sample(bits, books, dtype)
    save_file(packed.state_dict(), tmp_path / "w.safetensors")
    raw = (tmp_path / "w.safetensors").read_bytes()
    assert packed.size_bytes == len(raw) - 8 - int.from_bytes(raw[:8], "little")
    twin = from_spec(packed.spec())
    assert twin.size_bytes == packed.size_bytes
    twin.load_state_dict(load_file(tmp_path / "w.safetensors"), assign=True)
    assert torch.equal(twin.dequantize(), weight)
    assert twin.spec() == packed.spec()


def test_a_kernel_keeps_its_shape() -> None:
    packed, weight = sample(3, shape=(4, 2, 3, 3))
    assert torch.equal(packed.dequantize(), weight)


def test_size_of_one_book() -> None:
    packed, _ = sample(4, shape=(10, 16))
    assert packed.size_bytes == 10 * 8 + 16 * 2


@pytest.mark.parametrize("bits", [0, 9])
def test_a_width_that_is_none_is_refused(bits: int) -> None:
    with pytest.raises(InputError, match=f"bits={bits}"):
        CodebookWeight.from_codes(
            (1, 1), bits, torch.zeros(1, 1, dtype=torch.uint8), torch.ones(1, 1)
        )


@pytest.mark.parametrize("book_rows", [1, 2, 4, 6, 9])
def test_rows_may_share_books(tmp_path: Path, book_rows: int) -> None:
    generator, books = torch.Generator().manual_seed(0), -(-6 // book_rows)
    codes = torch.randint(0, 8, (6, 37), generator=generator, dtype=torch.uint8)
    book = torch.randn(books, 8, generator=generator).half()
    packed = CodebookWeight.from_codes((6, 37), 3, codes, book, book_rows)
    weight = book.float()[torch.arange(6)[:, None] // book_rows, codes.long()]
    assert torch.equal(packed.dequantize(), weight)
    assert torch.equal(packed.dequantize_rows(torch.tensor([5, 0])), weight[[5, 0]])
    assert torch.equal(packed.narrow(0, 3, 2).dequantize(), weight[3:5])
    assert torch.equal(packed.narrow(1, 5, 20).dequantize(), weight[:, 5:25])
    save_file(packed.state_dict(), tmp_path / "w.safetensors")
    twin = from_spec(packed.spec())
    assert twin.size_bytes == packed.size_bytes
    twin.load_state_dict(load_file(tmp_path / "w.safetensors"), assign=True)
    x = torch.randn(3, 37, generator=generator)
    for activation in ("float", "int8"):  # on the packed weight, interleaved
        y = kernels.linear(x, twin, None, activation)
        assert torch.allclose(y, x @ weight.t(), atol=0.3 if activation == "int8" else 1e-4)


def test_books_that_do_not_fit_the_rows_are_refused() -> None:
    codes, book = torch.zeros(6, 4, dtype=torch.uint8), torch.ones(2, 2)
    with pytest.raises(InputError, match="2 codebooks of 4 rows"):
        CodebookWeight.from_codes((12, 4), 1, codes.repeat(2, 1), book, 4)
