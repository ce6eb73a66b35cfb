"""Native products with ternary weights and with sums, on every instruction set of this machine."""

import itertools

import pytest
import torch
from packed_weights import exact_linear, random_weight

from tauten.formats.integer import IntegerWeight
from tauten.formats.sum import SumWeight
from tauten.formats.ternary import TernaryWeight
from tauten.runtime import kernels, library

pytestmark = pytest.mark.skipif(library.load() is None, reason="the native library isn't built")
SHAPES = [(1, 1), (5, 31), (16, 64), (33, 70), (50, 300)]


def ternary_weight(shape: tuple[int, int], group_size: int) -> TernaryWeight:
    signs = torch.randint(-1, 2, shape, dtype=torch.int8)
    cells = (shape[0], -(-shape[1] // (group_size or shape[1])))
    return TernaryWeight.from_signs(shape, group_size, signs, (torch.rand(cells) + 0.5).half())


@pytest.mark.parametrize("activation", ["float", "int8"])
def test_ternary_equals_float64(instruction_set: str, activation: str) -> None:
    torch.manual_seed(0)
    for shape, group_size in itertools.product(SHAPES, (0, 32, 64)):
        weight = ternary_weight(shape, group_size)
        x, bias = torch.randn(17, shape[1]), torch.randn(shape[0])
        expected, size = exact_linear(x, weight, bias, activation)
        for tokens in (0, 1, 3, 17):
            y = kernels.linear(x[:tokens], weight, bias, activation)
            assert ((y - expected[:tokens]).abs() <= 1e-6 * size[:tokens]).all(), (shape, tokens)
        assert weight.interleaved, "the native library serves it"


@pytest.mark.parametrize("activation", ["float", "int8"])
def test_a_sum_equals_float64(instruction_set: str, activation: str) -> None:
    torch.manual_seed(1)
    pairs: list[tuple[IntegerWeight, IntegerWeight]] = [
        (ternary_weight((33, 70), 32), ternary_weight((33, 70), 32)),
        (random_weight((33, 70), 1, 64), random_weight((33, 70), 1, 64)),
    ]
    x, bias = torch.randn(5, 70), torch.randn(33)
    for first, second in pairs:
        y = kernels.linear(x, SumWeight(first, second), bias, activation)
        (left, size), (right, _) = (
            exact_linear(x, part, own, activation)
            for part, own in ((first, bias), (second, torch.zeros(33)))
        )
        assert first.interleaved and second.interleaved
        assert ((y - left - right).abs() <= 2e-6 * size).all()


def test_rows_and_convolutions_of_a_sum_are_those_of_its_weight() -> None:
    torch.manual_seed(2)
    packed = SumWeight(ternary_weight((33, 70), 32), ternary_weight((33, 70), 32))
    assert kernels.prepare(packed)
    index = torch.tensor([[32, 0], [5, 5]])
    torch.testing.assert_close(kernels.rows(index, packed), packed.dequantize()[index])
    parts = [ternary_weight((6, 36), 0) for _ in range(2)]
    for part in parts:
        part.shape = (6, 4, 3, 3)
    settings = {
        "stride": [1, 1],
        "padding": [1, 1],
        "dilation": [1, 1],
        "groups": 1,
        "padding_mode": "zeros",
        "pad_edges": [1, 1, 1, 1],
    }
    kernel, x, bias = SumWeight(*parts), torch.randn(2, 4, 5, 5), torch.randn(6)
    expected = torch.nn.functional.conv2d(x, kernel.dequantize(), bias, padding=1)
    for activation, tolerance in (("float", 1e-4), ("int8", 0.2)):
        y = kernels.conv(x, kernel, bias, activation, settings)
        torch.testing.assert_close(y, expected, rtol=tolerance, atol=tolerance)


def test_gradients_reach_the_input_of_a_sum() -> None:
    packed = SumWeight(ternary_weight((33, 70), 32), ternary_weight((33, 70), 32))
    x, bias = torch.randn(2, 70, requires_grad=True), torch.zeros(33, requires_grad=True)
    kernels.linear(x, packed, bias).sum().backward()
    assert bias.grad is not None and torch.equal(bias.grad, torch.full((33,), 2.0))
    torch.testing.assert_close(x.grad, packed.dequantize().sum(0).expand(2, -1))
