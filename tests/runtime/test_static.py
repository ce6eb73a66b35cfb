"""Activations rounded by a fixed step, against the formula in float64."""

import pytest
import torch
from packed_weights import random_weight
from torch import Tensor, nn

from tauten.core.errors import InputError
from tauten.formats.integer import IntegerWeight
from tauten.models.packing import packed_layer
from tauten.quantization import RTN
from tauten.runtime import kernels, library, reference

STEP = torch.tensor(0.02)
NATIVE = library.load()


def rounded(x: Tensor) -> Tensor:
    return (x.double() / STEP.double()).round().clamp(-127, 127) * STEP.double()


def plain(x: Tensor, weight: IntegerWeight, bias: Tensor | None, *_: object) -> Tensor:
    """Without native code."""
    return reference.linear(reference.round_to_step(x, STEP), weight, bias)


@pytest.mark.parametrize("tokens", [1, 5, 40])
@pytest.mark.parametrize("grid", [(8, 0, "none"), (4, 32, "integer"), (3, 64, "float")])
def test_linear_equals_float64(
    instruction_set: str, tokens: int, grid: tuple[int, int, str]
) -> None:
    torch.manual_seed(tokens)
    for shape in ((5, 31), (33, 70), (50, 300)):
        weight = random_weight(shape, *grid)
        x, bias = torch.randn(tokens, shape[1]), torch.randn(shape[0])
        x[0, 0] = 1e30  # far beyond 127 steps
        matrix = weight.dequantize(torch.float64).t()
        expected = rounded(x) @ matrix + bias.double()
        size = rounded(x).abs() @ matrix.abs() + bias.abs()
        for run in (plain, kernels.linear):
            y = run(x, weight, bias, "static", STEP)
            assert ((y - expected).abs() <= 1e-6 * size).all(), (run, shape)


def test_conv_equals_float64() -> None:
    torch.manual_seed(0)
    layer, x = nn.Conv2d(8, 24, 3, padding=1, stride=2), torch.randn(2, 8, 9, 9)
    weight = RTN(8, 0, "none").encode(layer.weight)
    packed = packed_layer(layer, weight, "static", STEP)
    assert layer.bias is not None
    exact = weight.dequantize(torch.float64), layer.bias.double()
    expected = nn.functional.conv2d(rounded(x), *exact, padding=1, stride=2)
    with torch.no_grad():
        assert torch.allclose(packed(x).double(), expected, atol=1e-4)
        assert torch.allclose(packed(x[0]).double(), expected[0], atol=1e-4)
        x.requires_grad_()
    packed(x).sum().backward()  # the way with gradients rounds too
    assert torch.allclose(packed(x).double(), expected, atol=1e-4) and x.grad is not None


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_token_that_is_not_finite_gives_nan_and_no_other(bad: float) -> None:
    weight, x = random_weight((33, 70)), torch.randn(3, 70)
    x[1, 7] = bad
    for run in (plain, kernels.linear):
        finite = run(x, weight, None, "static", STEP).isfinite().all(1)
        assert finite.tolist() == [True, False, True]


def test_groups_and_missing_steps() -> None:
    grouped = nn.Conv2d(8, 8, 3, groups=2)
    assert packed_layer(grouped, RTN(8, 0).encode(grouped.weight), "static", STEP).step is None
    plain = nn.Linear(8, 8)
    packed = packed_layer(plain, RTN(8, 0).encode(plain.weight), "static", None)
    assert packed.activation == "int8"
    with pytest.raises(InputError, match="step"):
        kernels.linear(torch.ones(1, 8), packed.packed, None, "static")
    with pytest.raises(InputError, match="step"):
        kernels.linear(torch.ones(1, 8), packed.packed, None, "int8", STEP)


@pytest.mark.skipif(NATIVE is None, reason="the native library isn't built")
def test_ops_are_registered_soundly_and_check_the_step() -> None:
    weight = random_weight((33, 70), 8, 0, "none")
    kernels.prepare(weight)
    tensors = [weight.codes, weight.scale, weight.zero, None]
    arguments = [torch.randn(2, 70), *tensors, 8, 0, 33, True, STEP]
    torch.library.opcheck(torch.ops.tauten.integer_linear.default, arguments)
    with pytest.raises(InputError, match="step"):
        torch.ops.tauten.integer_linear(*arguments[:-1], torch.ones(2))
