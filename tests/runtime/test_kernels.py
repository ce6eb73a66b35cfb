"""Native products against float64, on every instruction set that this machine runs."""

import copy
import itertools
import os

import pytest
import torch
from packed_weights import exact_linear, random_weight
from torch import Tensor

from tauten.core.errors import InputError
from tauten.formats.codebook import CodebookWeight
from tauten.formats.integer import IntegerWeight
from tauten.runtime import kernels, library, reference

NATIVE = library.load()
pytestmark = pytest.mark.skipif(NATIVE is None, reason="the native library isn't built")
SETS = [name for name in library.SETS if NATIVE is not None and NATIVE.supports(name)]
GRIDS = [(32, "none"), (64, "integer"), (32, "float"), (0, "none"), (0, "integer"), (0, "float")]
SHAPES = [(1, 1), (5, 31), (16, 64), (33, 70), (50, 300)]


@pytest.fixture(autouse=True)
def _seed(seed: int = int(os.environ.get("TAUTEN_TEST_SEED", "0"))) -> None:
    torch.manual_seed(seed or torch.seed() % 2**31)


@pytest.mark.parametrize("activation", ["float", "int8"])
@pytest.mark.parametrize("bits", range(1, 9))
def test_linear_equals_float64(instruction_set: str, bits: int, activation: str) -> None:
    for group_size, zero_kind in GRIDS:
        for shape in SHAPES:
            weight = random_weight(shape, bits, group_size, zero_kind)
            x, bias = torch.randn(17, shape[1]), torch.randn(shape[0])
            expected, size = exact_linear(x, weight, bias, activation)
            for tokens in (0, 1, 2, 3, 5, 17):
                y = kernels.linear(x[:tokens], weight, bias, activation)
                close = (y - expected[:tokens]).abs() <= 1e-6 * size[:tokens]
                assert y.shape == (tokens, shape[0])
                assert close.all(), (group_size, zero_kind, shape, tokens)


@pytest.mark.parametrize("bits", range(1, 5))
def test_codebook_equals_float64(instruction_set: str, bits: int) -> None:
    for shape, books in itertools.product(SHAPES, ("one", "rows")):
        codebook = torch.randn(1 if books == "one" else shape[0], 2**bits).half()
        codes = torch.randint(0, 2**bits, shape, dtype=torch.uint8)
        weight = CodebookWeight.from_codes(shape, bits, codes, codebook)
        state, before = copy.deepcopy(weight.state_dict()), weight.dequantize()
        x, bias = torch.randn(17, shape[1]), torch.randn(shape[0])
        token_codes, scale = reference.quantize_tokens(x)
        entries, step = (part.expand(shape[0], -1) for part in weight.rounded_codebook())
        matrix = entries.double().gather(1, codes.long()) * step.double()
        expected = token_codes.double() * scale.double() @ matrix.T + bias.double()
        size = x.abs().sum(1, keepdim=True) * codebook.abs().max() + bias.abs()
        for tokens in (0, 1, 2, 3, 5, 17):
            y = kernels.linear(x[:tokens], weight, bias, "int8")
            assert ((y - expected[:tokens]).abs() <= 1e-6 * size[:tokens]).all(), (shape, tokens)
        assert weight.interleaved and torch.equal(weight.dequantize(), before)
        held = copy.deepcopy(weight).state_dict()
        assert held.keys() == state.keys()
        assert all(torch.equal(held[name], state[name]) for name in state)
        expected = torch.nn.functional.linear(x, before, bias)
        assert torch.allclose(kernels.linear(x, weight, bias), expected, atol=1e-3)


def test_huge_pages_change_no_value() -> None:
    weight = random_weight((600, 2100))  # 640 kB of codes
    kernels.prepare(weight)
    before = weight.codes.clone()
    assert NATIVE is not None
    NATIVE.use_huge_pages(weight.codes)
    NATIVE.use_huge_pages(weight.codes[3:])  # starts within a page
    assert torch.equal(weight.codes, before)
    x, bias = torch.randn(2, 2100), torch.randn(600)
    expected, size = exact_linear(x, weight, bias, "float")
    assert ((kernels.linear(x, weight, bias) - expected).abs() <= 1e-6 * size).all()


def test_many_tokens_and_columns(instruction_set: str) -> None:
    """Several batches of tokens, several slabs of columns, several threads."""
    weight = random_weight((40, 2100), 4, 128, "float")
    x, bias = torch.randn(530, 2100), torch.randn(40)
    for activation in ("float", "int8"):
        expected, size = exact_linear(x, weight, bias, activation)
        assert ((kernels.linear(x, weight, bias, activation) - expected).abs() / size).max() < 1e-6


@pytest.mark.parametrize("activation", ["float", "int8"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("tokens", [1, 8, 12])
def test_non_finite_tokens_stay_non_finite(
    instruction_set: str, value: float, activation: str, tokens: int
) -> None:
    weight = random_weight((33, 70), 4, 32)
    x = torch.randn(tokens, 70)
    x[0, 69] = value
    y = kernels.linear(x, weight, None, activation)
    assert not y[0].isfinite().any()
    assert y[1:].isfinite().all()


def test_tiny_and_huge_activations(instruction_set: str) -> None:
    weight = random_weight((16, 64), 4, 32)
    for size in (0.0, 1e-45, 1e-38, 1e-30, 1e30):
        x = torch.full((2, 64), size)
        y = kernels.linear(x, weight, None, "int8")
        expected = kernels.linear(x, weight, None, "float")
        assert torch.allclose(y, expected, rtol=1e-2, atol=max(1e-35, size / 10))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_dtype_and_shape_follow_the_input(dtype: torch.dtype) -> None:
    weight = random_weight((33, 70), 4, 32)
    x = torch.randn(2, 3, 70, dtype=dtype)
    y = kernels.linear(x.transpose(0, 1), weight, torch.randn(33, dtype=dtype), "int8")
    assert y.dtype == dtype and y.shape == (3, 2, 33)
    assert kernels.linear(x[0, 0], weight).shape == (33,)


def test_interleaving_changes_no_value() -> None:
    for bits, zero_kind in itertools.product(range(1, 9), ("none", "integer", "float")):
        weight = random_weight((33, 70), bits, 32, zero_kind)
        before, state = weight.dequantize(), copy.deepcopy(weight.state_dict())
        rows, size = torch.tensor([32, 0, 17]), weight.size_bytes
        weight.interleave()
        twin = copy.deepcopy(weight)
        assert weight.interleaved and twin.interleaved
        assert torch.equal(twin.dequantize(), before)
        assert torch.equal(weight.dequantize_rows(rows), before[rows])
        assert weight.size_bytes == size
        for held in (weight.state_dict(), twin.state_dict()):
            assert held.keys() == state.keys()
            assert all(torch.equal(held[name], state[name]) for name in state)
        weight.deinterleave()
        assert all(torch.equal(weight.get_buffer(name), state[name]) for name in state)


def test_state_dict_loads_into_interleaved_weight() -> None:
    source, target = random_weight((33, 70)), random_weight((33, 70))
    x = torch.randn(2, 70)
    kernels.linear(x, target)
    target.load_state_dict(source.state_dict())
    assert torch.equal(kernels.linear(x, target), kernels.linear(x, source))


def test_what_leaves_the_cpu_is_by_rows() -> None:
    weight = random_weight((33, 70), 3, 32, "integer")
    shapes = {name: buffer.shape for name, buffer in weight.named_buffers()}
    weight.interleave()
    weight.to("meta")
    assert {name: buffer.shape for name, buffer in weight.named_buffers()} == shapes


def test_rows_equal_those_of_the_format() -> None:
    for bits, zero_kind in itertools.product(range(1, 9), ("none", "integer", "float")):
        weight = random_weight((33, 70), bits, 32, zero_kind)
        index = torch.tensor([[32, 0, 17], [5, 5, 16]])
        expected = weight.dequantize()[index]
        found = kernels.rows(index, weight)
        assert weight.interleaved and torch.allclose(found, expected, rtol=1e-6, atol=1e-6)
        assert torch.equal(kernels.rows(index.int(), weight, torch.bfloat16), found.bfloat16())
    assert kernels.rows(index[:0], weight).shape == (0, 3, 70)


def test_rows_out_of_range_raise() -> None:
    weight = random_weight((33, 70))
    weight.interleave()
    for row in (-1, 33, 47, 2**40):
        with pytest.raises(IndexError):
            weight.dequantize_rows(torch.tensor([row]))
        with pytest.raises(IndexError):
            kernels.rows(torch.tensor([0, row]), weight)


def test_gradients_reach_input_and_bias() -> None:
    weight = random_weight((33, 70))
    kernels.prepare(weight)
    for activation in ("float", "int8"):
        x, bias = torch.randn(2, 70, requires_grad=True), torch.zeros(33, requires_grad=True)
        kernels.linear(x, weight, bias, activation).sum().backward()
        assert x.grad is not None and bias.grad is not None
        assert torch.allclose(x.grad, weight.dequantize().sum(0).expand(2, -1), rtol=1e-4)


def test_unserved_formats_fall_back() -> None:
    weight = random_weight((33, 70), 4, 48)
    x, bias = torch.randn(3, 70), torch.randn(33)
    expected, size = exact_linear(x, weight, bias, "float")
    assert ((kernels.linear(x, weight, bias) - expected).abs() / size).max() < 1e-6
    assert not weight.interleaved


def test_compiles_without_a_graph_break() -> None:
    weight = random_weight((33, 70))
    kernels.prepare(weight)

    @torch.compile(backend="eager", fullgraph=True)
    def run(x: Tensor) -> Tensor:
        return kernels.linear(x, weight, None, "int8") + 1

    x = torch.randn(3, 70)
    assert torch.equal(run(x), kernels.linear(x, weight, None, "int8") + 1)


def test_half_and_double_keep_the_format() -> None:
    weight = random_weight((5, 70), 4, 32, "float")
    before = weight.dequantize()
    for interleave in (weight.deinterleave, weight.interleave):
        interleave()
        assert torch.equal(weight.bfloat16().dequantize(), before)


def op_arguments(weight: IntegerWeight, x: Tensor) -> list[object]:
    kernels.prepare(weight)
    tensors = [weight.codes, weight.scale, weight.zero, None]
    return [x, *tensors, weight.bits, weight.group_size, weight.out_features, True]


def test_op_is_registered_soundly() -> None:
    arguments = op_arguments(random_weight((33, 70), 4, 32, "integer"), torch.randn(2, 70))
    torch.library.opcheck(torch.ops.tauten.integer_linear.default, arguments)
    weight = random_weight((33, 70), 4, 32, "integer")
    kernels.prepare(weight)
    arguments = [torch.tensor([[1, 32]]), weight.codes, weight.scale, weight.zero, 4, 32, 33, 70]
    torch.library.opcheck(torch.ops.tauten.integer_rows.default, arguments)
    codes = torch.randint(0, 8, (33, 70), dtype=torch.uint8)
    book = CodebookWeight.from_codes((33, 70), 3, codes, torch.randn(33, 8))
    kernels.prepare(book)
    arguments = [torch.randn(2, 70), book.codes, book.table, book.step, None, 3, 33]
    torch.library.opcheck(torch.ops.tauten.codebook_linear.default, arguments)


CORRUPTIONS = {
    "x is integer": (0, lambda x: x.int()),
    "x has other columns": (0, lambda x: torch.randn(2, 97)),
    "x has no dimension": (0, lambda x: x[0, 0]),
    "codes are short": (1, lambda codes: codes[:-1]),
    "codes are by rows": (1, lambda codes: codes.flatten(1)),
    "codes are signed": (1, lambda codes: codes.view(torch.int8)),
    "codes have gaps": (1, lambda codes: torch.cat([codes, codes], -1)[..., ::2]),
    "scale is short": (2, lambda scale: scale[:, :-1]),
    "scale is float64": (2, lambda scale: scale.double()),
    "zero is short": (3, lambda zero: zero[:-1]),
    "zero is int16": (3, lambda zero: zero.short()),
    "bias is long": (4, lambda bias: torch.zeros(34)),
    "bits are too many": (5, lambda bits: 9),
    "bits don't match": (5, lambda bits: 3),
    "group is odd": (6, lambda size: 48),
    "group is negative": (6, lambda size: -32),
    "group doesn't match": (6, lambda size: 64),
    "rows are too many": (7, lambda rows: 49),
    "rows are none": (7, lambda rows: 0),
}


@pytest.mark.parametrize("corruption", CORRUPTIONS)
def test_bad_tensors_raise_before_native_code(corruption: str) -> None:
    arguments = op_arguments(random_weight((33, 70), 4, 32, "integer"), torch.randn(2, 70))
    position, change = CORRUPTIONS[corruption]
    arguments[position] = change(arguments[position])  # type: ignore[no-untyped-call]
    with pytest.raises(InputError):
        torch.ops.tauten.integer_linear(*arguments)


@pytest.mark.parametrize("columns", [69, 71, 96])
def test_other_columns_raise_also_where_padding_would_hide_them(columns: int) -> None:
    weight = random_weight((20, 70))
    for _ in range(2):  # by rows, then interleaved
        with pytest.raises(InputError, match=r"expected \(..., 70\)"):
            kernels.linear(torch.randn(3, columns), weight)
        kernels.linear(torch.randn(3, 70), weight)


def test_bad_names_raise() -> None:
    assert NATIVE is not None
    with pytest.raises(InputError):
        NATIVE.use("mmx")
    with pytest.raises(InputError):
        kernels.linear(torch.randn(2, 70), random_weight((33, 70)), None, "int4")
