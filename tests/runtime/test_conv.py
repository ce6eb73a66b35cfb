"""Packed convolutions against torch's own in float64 on the weight that they stand for."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tauten.core.errors import InputError
from tauten.core.technique import WeightTechnique
from tauten.formats.codebook import CodebookWeight
from tauten.formats.integer import IntegerWeight
from tauten.formats.packed import PackedWeight
from tauten.models.packing import packed_layer
from tauten.quantization import RTN, Int8
from tauten.runtime import kernels, library, reference
from tauten.runtime.modules import PackedConv

NATIVE = library.load()
# torch warns of the copy that it makes to pad an even kernel.
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same'")
needs_native = pytest.mark.skipif(NATIVE is None, reason="the native library isn't built")
Layers = dict[str, tuple[type[nn.Module], dict[str, Any], tuple[int, ...]]]
SERVED: Layers = {
    "plain": (nn.Conv2d, {"kernel_size": 3, "padding": 1}, (2, 5, 9, 8)),
    "pointwise": (nn.Conv2d, {"kernel_size": 1}, (2, 40, 5, 3)),
    "oblong": (
        nn.Conv2d,
        {"kernel_size": (2, 5), "stride": (2, 1), "dilation": (1, 2), "padding": (0, 3)},
        (3, 4, 9, 11),
    ),
    "dilated": (nn.Conv2d, {"kernel_size": 3, "dilation": 2, "padding": "same"}, (1, 5, 7, 8)),
    "even same": (nn.Conv2d, {"kernel_size": 4, "padding": "same"}, (1, 5, 7, 8)),
    "reflect": (nn.Conv2d, {"kernel_size": 3, "padding": 2, "padding_mode": "reflect"}, (5, 9, 8)),
    "circular": (nn.Conv1d, {"kernel_size": 5, "padding": 4, "padding_mode": "circular"}, (5, 12)),
    "replicate": (
        nn.Conv1d,
        {"kernel_size": 3, "padding": "same", "padding_mode": "replicate", "bias": False},
        (2, 16, 300),
    ),
    "lines of 14": (nn.Conv2d, {"kernel_size": 3, "padding": 1}, (3, 7, 6, 14)),
    "wide": (nn.Conv1d, {"kernel_size": 7, "stride": 3, "padding": "valid"}, (2, 3, 40)),
    "solid": (nn.Conv3d, {"kernel_size": (1, 2, 3), "padding": 1, "stride": 2}, (2, 3, 4, 5, 6)),
    "empty": (nn.Conv2d, {"kernel_size": 3}, (0, 5, 9, 8)),
}
GROUPED: Layers = {
    "groups": (nn.Conv2d, {"kernel_size": 3, "groups": 2}, (2, 6, 9, 8)),
    "depthwise": (nn.Conv1d, {"kernel_size": 3, "groups": 6, "padding": 1}, (6, 9)),
}
STEP = torch.tensor(0.02)  # some inputs are beyond 127 of it
ROWS = 36  # two blocks and a part of one


def layer_of(kind: type[nn.Module], options: dict[str, Any], size: tuple[int, ...]) -> nn.Module:
    dimensions = {nn.Conv1d: 1, nn.Conv2d: 2, nn.Conv3d: 3}[kind]
    return kind(size[-1 - dimensions], ROWS, **options)


def rounded_book(weight: Tensor) -> CodebookWeight:
    """A weight at the nearest of 8 values."""
    book = torch.linspace(-1, 1, 8)[None] * weight.detach().abs().max()
    codes = (weight.detach().flatten(1)[..., None] - book[0]).abs().argmin(-1).to(torch.uint8)
    return CodebookWeight.from_codes(tuple(weight.shape), 3, codes, book)


def double_conv(layer: nn.Module, weight: Tensor, bias: Tensor | None, x: Tensor) -> Tensor:
    """torch's own convolution with a layer's settings, another weight and bias."""
    state = {"weight": weight.double()}
    twin = type(layer)(
        layer.in_channels,
        len(weight),
        layer.kernel_size,
        stride=layer.stride,
        padding=layer.padding,
        dilation=layer.dilation,
        groups=layer.groups,
        padding_mode=layer.padding_mode,
        bias=bias is not None,
    ).double()
    if bias is not None:
        state["bias"] = bias.detach().double()
    twin.load_state_dict(state)
    with torch.no_grad():
        return twin(x.double())


def rounded_conv(layer: nn.Module, packed: PackedWeight, x: Tensor) -> Tensor:
    """The same with what each position sees rounded to 8 bits; in float64.

    A convolution whose kernel is the identity lays out what each position sees.
    """
    count = packed.in_features
    identity = torch.eye(count).view(count, *packed.shape[1:])
    batch = x if x.dim() == len(packed.shape) else x[None]
    columns = double_conv(layer, identity, None, batch).movedim(1, -1)
    if isinstance(packed, IntegerWeight):
        size, matrix = packed.columns_per_group, packed.dequantize(torch.float64).flatten(1)
    else:
        assert isinstance(packed, CodebookWeight)
        entries, step = packed.rounded_codebook()
        values = (entries.double() * step).expand(len(packed.codes), -1)
        size, matrix = count, values.gather(1, packed.integer_codes().long())
    cells = nn.functional.pad(columns, (0, -count % size)).unflatten(-1, (-1, size))
    codes, scale = reference.quantize_tokens(cells)
    tokens = (codes.double() * scale).flatten(-2)[..., :count]
    bias = 0.0 if layer.bias is None else layer.bias.detach().double()
    y = (tokens @ matrix.T + bias).movedim(-1, 1)
    return y if x.dim() == len(packed.shape) else y[0]


def assert_close(found: Tensor, expected: Tensor) -> None:
    assert found.shape == expected.shape and found.is_contiguous()
    assert torch.allclose(found.double(), expected, rtol=1e-5, atol=2e-6)


@needs_native
@pytest.mark.parametrize("technique", [RTN(4, 32), RTN(3, 0, "integer"), RTN(8, 64, "none")])
@pytest.mark.parametrize("name", SERVED | GROUPED)
def test_float_equals_torch(
    monkeypatch: pytest.MonkeyPatch, name: str, technique: WeightTechnique
) -> None:
    kind, options, size = (SERVED | GROUPED)[name]
    torch.manual_seed(0)
    layer, x = layer_of(kind, options, size), torch.randn(size)
    packed = packed_layer(layer, technique.encode(layer.weight.detach()), "float")
    expected = double_conv(layer, packed.packed.dequantize(torch.float64), layer.bias, x)
    for dense_positions in (0, 1 << 40):  # the dense way, then the native one
        monkeypatch.setattr(kernels, "_DENSE_POSITIONS", dense_positions)
        with torch.inference_mode():
            assert_close(packed(x), expected)
    assert packed.packed.interleaved == (name in SERVED)


@needs_native
@pytest.mark.parametrize("name", SERVED)
def test_int8_equals_rounded_columns(instruction_set: str, name: str) -> None:
    kind, options, size = SERVED[name]
    torch.manual_seed(0)
    layer, x = layer_of(kind, options, size), torch.randn(size)
    book = rounded_book(layer.weight)
    for weight in (RTN(4, 32).encode(layer.weight), Int8().encode(layer.weight), book):
        packed = packed_layer(layer, weight, "int8")
        expected = rounded_conv(layer, weight, x)
        with torch.inference_mode():
            assert_close(packed(x), expected)
    assert book.interleaved


@needs_native
@pytest.mark.parametrize("name", SERVED)
def test_static_equals_rounded_input(instruction_set: str, name: str) -> None:
    """Bytes gathered from an image that was rounded before, in every geometry."""
    kind, options, size = SERVED[name]
    torch.manual_seed(0)
    layer, x = layer_of(kind, options, size), torch.randn(size)
    rounded = reference.round_to_step(x.double(), STEP)
    for technique in (Int8(), RTN(4, 32, "integer"), RTN(3, 64, "float")):
        weight = technique.encode(layer.weight)
        packed = packed_layer(layer, weight, "static", STEP)
        expected = double_conv(layer, weight.dequantize(torch.float64), layer.bias, rounded)
        with torch.inference_mode():
            assert_close(packed(x), expected)


@pytest.mark.parametrize("name", SERVED)
def test_plain_torch_gives_the_same(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(library, "load", lambda: None)
    monkeypatch.setattr(reference, "_UNFOLDED", 1)  # a sample at a time
    kind, options, size = SERVED[name]
    torch.manual_seed(0)
    layer, x = layer_of(kind, options, size), torch.randn(size)
    for weight in (RTN(4, 32).encode(layer.weight), rounded_book(layer.weight)):
        packed = packed_layer(layer, weight, "int8")
        expected = rounded_conv(layer, weight, x)
        with torch.inference_mode():
            assert_close(packed(x), expected)
        assert not weight.interleaved


@needs_native
def test_many_positions_and_threads(use_threads: Callable[[int], None]) -> None:
    """Several batches of positions, that don't end where samples do."""
    layer, x = nn.Conv2d(32, 24, 3, padding=1), torch.randn(3, 32, 19, 23)
    packed = packed_layer(layer, RTN(4, 32).encode(layer.weight), "int8")
    expected = rounded_conv(layer, packed.packed, x)
    use_threads(2)
    static = packed_layer(layer, packed.packed, "static", STEP)
    matrix = packed.packed.dequantize(torch.float64)
    rounded = reference.round_to_step(x.double(), STEP)
    with torch.inference_mode():
        assert_close(packed(x), expected)
        assert_close(packed(x.contiguous(memory_format=torch.channels_last)), expected)
        assert_close(static(x), double_conv(layer, matrix, layer.bias, rounded))


@needs_native
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_dtype_follows_the_input(dtype: torch.dtype) -> None:
    layer, x = nn.Conv2d(8, 24, 3), torch.randn(1, 8, 5, 5, dtype=dtype)
    for activation in ("float", "int8"):
        packed = packed_layer(layer, RTN(4, 32).encode(layer.weight), activation)
        with torch.inference_mode():
            expected, found = packed(x.float()), packed.to(dtype)(x)
        assert found.dtype == dtype
        assert (found.float() - expected).norm() < 2e-2 * expected.norm()


@needs_native
@pytest.mark.parametrize("activation", ["int8", "static"])
@pytest.mark.parametrize("bad", [float("nan"), float("-inf")])
def test_non_finite_inputs_reach_only_what_sees_them(bad: float, activation: str) -> None:
    layer, x = nn.Conv2d(8, 24, 3, padding=1), torch.randn(2, 8, 9, 9)
    x[0, 3, 4, 4] = bad
    step = STEP if activation == "static" else None
    packed = packed_layer(layer, RTN(4, 32).encode(layer.weight), activation, step)
    with torch.inference_mode():
        finite = packed(x).isfinite()
    assert not finite[0, :, 3:6, 3:6].any()
    assert int(finite.logical_not().sum()) == 24 * 9


@pytest.mark.parametrize("activation", ["float", "int8"])
def test_gradients_reach_input_and_bias(activation: str) -> None:
    layer, x = nn.Conv2d(8, 24, 3, padding=1), torch.randn(2, 8, 5, 5, requires_grad=True)
    packed = packed_layer(layer, RTN(4, 32).encode(layer.weight.detach()), activation)
    packed(x).sum().backward()
    twin, dense = x.detach().requires_grad_(), packed.packed.dequantize()
    nn.functional.conv2d(twin, dense, padding=1).sum().backward()
    assert x.grad is not None and twin.grad is not None and packed.bias is not None
    assert torch.allclose(x.grad, twin.grad, atol=1e-5)
    assert torch.equal(packed.bias.grad, torch.full((24,), 50.0))


def test_int8_activations_reach_convolutions_without_groups() -> None:
    plain, grouped = nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3, groups=2)
    for layer, activation in ((plain, "int8"), (grouped, "float")):
        packed = packed_layer(layer, Int8().encode(layer.weight), "int8")
        assert isinstance(packed, PackedConv) and packed.activation == activation


def test_bad_inputs_raise() -> None:
    layer = nn.Conv2d(8, 24, 3, groups=1)
    for activation in ("float", "int8"):
        packed = packed_layer(layer, RTN(4, 32).encode(layer.weight), activation)
        for size in ((1, 7, 5, 5), (8,), (1, 1, 8, 5, 5)):
            with pytest.raises(InputError, match="expected"):
                packed(torch.randn(size))
        with pytest.raises(InputError, match="floating"):
            packed(torch.zeros(1, 8, 5, 5, dtype=torch.int64))
    packed.settings["groups"] = 2
    with pytest.raises(InputError, match="groups=2"):
        packed(torch.randn(1, 16, 5, 5))


def op_arguments() -> list[Any]:
    weight = RTN(4, 32, "integer").encode(torch.randn(24, 8, 3, 3))
    kernels.prepare(weight)
    tensors = [weight.codes, weight.scale, weight.zero, None, torch.randn(24)]
    geometry = [[3, 3], [1, 1], [1, 1], [0, 1, 1, 2]]
    return [torch.randn(2, 8, 5, 5), *tensors, 4, 32, 24, *geometry, True]


@needs_native
def test_op_is_registered_soundly() -> None:
    torch.library.opcheck(torch.ops.tauten.conv.default, op_arguments())


CORRUPTIONS: dict[str, tuple[int, Any]] = {
    "x is integer": (0, torch.zeros(2, 8, 5, 5, dtype=torch.int32)),
    "x has other channels": (0, torch.zeros(2, 11, 5, 5)),
    "x is flat": (0, torch.zeros(2, 8, 5)),
    "x is small": (0, torch.zeros(2, 8, 0, 1)),
    "codes are short": (1, torch.zeros(2, 2, 4, 64, dtype=torch.uint8)),
    "scale is short": (2, torch.zeros(2, 2, 16)),
    "zero is short": (3, torch.zeros(2, 2, 16, dtype=torch.uint8)),
    "table isn't one": (4, torch.zeros(2, 4, 4, 16)),
    "bias is long": (5, torch.zeros(25)),
    "bits don't match": (6, 5),
    "group doesn't match": (7, 64),
    "rows are too many": (8, 33),
    "kernel is larger": (9, [4, 4]),
    "kernel is flat": (9, [9]),
    "stride is none": (10, [0, 1]),
    "dilation is negative": (11, [1, -1]),
    "edges are few": (12, [1, 1, 1]),
    "edge is negative": (12, [1, 1, -1, 1]),
}


@needs_native
@pytest.mark.parametrize("corruption", CORRUPTIONS)
def test_bad_tensors_raise_before_native_code(corruption: str) -> None:
    arguments = op_arguments()
    position, value = CORRUPTIONS[corruption]
    arguments[position] = value
    with pytest.raises(InputError):
        torch.ops.tauten.conv(*arguments)


def conv_op(layer: nn.Module, x: Tensor, **changed: list[int]) -> Tensor:
    """A packed convolution by the op itself, with some of its geometry changed."""
    packed = RTN(4, 32).encode(layer.weight.detach())
    assert isinstance(packed, IntegerWeight)
    kernels.prepare(packed)
    count = x.dim() - 2
    geometry = {
        "kernel": list(packed.shape[2:]),
        "stride": list(layer.stride),
        "dilation": list(layer.dilation),
        "edges": [0] * 2 * count,
    } | changed
    grid = (packed.codes, packed.scale, packed.zero, None, None)
    size = (packed.bits, packed.group_size, packed.out_features)
    found: Tensor = torch.ops.tauten.conv(x, *grid, *size, *geometry.values(), True)
    return found


FAR = 2**61  # so many inputs that their bytes can't be counted


@needs_native
@pytest.mark.parametrize(
    "changed",
    [
        {"stride": [FAR, FAR], "edges": [FAR] * 4},
        {"stride": [1, FAR], "edges": [FAR, FAR, 0, 0]},
        {"stride": [2**40, 2**40], "edges": [2**41] * 4},
        {"stride": [2**31, 2**31], "dilation": [2**31, 2**31], "edges": [2**32] * 4},
        {"dilation": [FAR, 1], "edges": [0, 0, FAR, FAR]},
    ],
)
def test_geometry_beyond_64_bits_is_refused(changed: dict[str, list[int]]) -> None:
    """Its offsets would come round to places outside of the image."""
    layer = nn.Conv2d(2, ROWS, 3)
    with pytest.raises((InputError, MemoryError), match=r"edges|memory"):
        conv_op(layer, torch.randn(1, 2, 6, 6), **changed)


@needs_native
@pytest.mark.parametrize("step", [7, 2**31, FAR, 2**63 - 1])
def test_a_step_that_is_never_taken_may_be_of_any_length(step: int) -> None:
    """Of a kernel with one place, or one weight, along a dimension."""
    layer, x = nn.Conv2d(2, ROWS, (3, 1)), torch.randn(1, 2, 3, 9)
    changed = {"stride": [step, 1], "dilation": [1, step]}
    assert torch.equal(conv_op(layer, x, **changed), conv_op(layer, x))
