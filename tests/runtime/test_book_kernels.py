"""Native float products on codebook weights against float64, on every instruction set there is."""

import copy
import itertools
import os

import pytest
import torch
from torch import Tensor

from tauten.core.errors import InputError
from tauten.formats.codebook import CodebookWeight
from tauten.runtime import kernels, library, reference

pytestmark = pytest.mark.skipif(library.load() is None, reason="the native library isn't built")
SHAPES = [(1, 1), (2, 17), (3, 64), (5, 31), (33, 70), (17, 300)]


@pytest.fixture(autouse=True)
def _seed(seed: int = int(os.environ.get("TAUTEN_TEST_SEED", "0"))) -> None:
    torch.manual_seed(seed or torch.seed() % 2**31)


def random_weight(shape: tuple[int, int], bits: int, books: int = 1) -> CodebookWeight:
    codes = torch.randint(0, 2**bits, shape, dtype=torch.uint8)
    dtype = torch.float32 if shape[0] == 5 else torch.float16
    return CodebookWeight.from_codes(shape, bits, codes, torch.randn(books, 2**bits).to(dtype))


def assert_equals_float64(weight: CodebookWeight, all_tokens: tuple[int, ...]) -> None:
    matrix, state = weight.dequantize(torch.float64), copy.deepcopy(weight.state_dict())
    x, bias = torch.randn(max(all_tokens), weight.in_features), torch.randn(weight.out_features)
    expected = x.double() @ matrix.T + bias.double()
    size = x.abs().double() @ matrix.abs().T + bias.abs()
    for tokens in all_tokens:
        y = kernels.linear(x[:tokens], weight, bias)
        assert ((y - expected[:tokens]).abs() <= 1e-6 * size[:tokens]).all(), tokens
    assert weight.interleaved
    held = weight.state_dict()
    assert held.keys() == state.keys()
    assert all(torch.equal(held[name], state[name]) for name in state)


@pytest.mark.parametrize("bits", range(1, 5))
def test_float_product_equals_float64(instruction_set: str, bits: int) -> None:
    for shape, own in itertools.product(SHAPES, (False, True)):
        weight = random_weight(shape, bits, shape[0] if own else 1)
        assert_equals_float64(weight, (0, 1, 2, 3, 5, 8, 17))


def test_several_slabs_and_batches(instruction_set: str) -> None:
    tokens = 530 if instruction_set != "portable" else 20
    for books in (1, 40):
        assert_equals_float64(random_weight((40, 2100), 4, books), (tokens,))


@pytest.mark.parametrize("tokens", [1, 8, 12])
def test_non_finite_values_spread_as_in_the_dense_product(
    instruction_set: str, tokens: int
) -> None:
    for value, books in itertools.product((float("nan"), float("inf")), (1, 33)):
        weight = random_weight((33, 70), 3, books)
        weight.codebook[books // 2, 5] = value
        x = torch.randn(tokens, 70)
        x[0, 69] = value
        y, expected = kernels.linear(x, weight), x @ weight.dequantize().T
        assert torch.equal(y.isfinite(), expected.isfinite())


def test_wide_codes_take_the_reference() -> None:
    weight, x = random_weight((5, 70), 6), torch.randn(3, 70)
    assert torch.equal(kernels.linear(x, weight), reference.linear(x, weight, None))
    assert not weight.interleaved


def op_arguments(weight: CodebookWeight, x: Tensor) -> list[object]:
    kernels.prepare(weight)
    return [x, weight.codes, weight.entries, None, weight.bits, weight.out_features]


def test_op_is_registered_soundly() -> None:
    op = torch.ops.tauten.codebook_linear_float.default
    for books in (1, 33):
        arguments = op_arguments(random_weight((33, 70), 3, books), torch.randn(2, 70))
        torch.library.opcheck(op, arguments)


CORRUPTIONS = {
    "x is integer": (0, lambda x: x.int()),
    "x has other columns": (0, lambda x: torch.randn(2, 97)),
    "codes are short": (1, lambda codes: codes[:-1]),
    "codes are by rows": (1, lambda codes: codes.flatten(1)),
    "entries are short": (2, lambda entries: entries[:-1]),
    "entries are half": (2, lambda entries: entries.half()),
    "bias is long": (3, lambda bias: torch.zeros(34)),
    "bits are too many": (4, lambda bits: 5),
    "bits don't match": (4, lambda bits: 2),
    "rows are too many": (5, lambda rows: 49),
    "rows are none": (5, lambda rows: 0),
}


@pytest.mark.parametrize("books", [1, 33])
@pytest.mark.parametrize("corruption", CORRUPTIONS)
def test_bad_tensors_raise_before_native_code(corruption: str, books: int) -> None:
    arguments = op_arguments(random_weight((33, 70), 3, books), torch.randn(2, 70))
    position, change = CORRUPTIONS[corruption]
    arguments[position] = change(arguments[position])  # type: ignore[no-untyped-call]
    with pytest.raises(InputError):
        torch.ops.tauten.codebook_linear_float(*arguments)
