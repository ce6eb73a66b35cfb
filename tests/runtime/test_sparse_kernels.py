"""Native products on pruned weights against float64, on every instruction set there is."""

import copy
import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tauten.core.errors import CorruptError, InputError
from tauten.formats.sparse import SparseWeight
from tauten.models.packing import install_empty, module_spec
from tauten.runtime import kernels, library, reference
from tauten.runtime.modules import PackedConv, PackedLinear

pytestmark = pytest.mark.skipif(library.load() is None, reason="the native library isn't built")
SHAPES = [(1, 1), (2, 17), (3, 64), (5, 31), (33, 70), (17, 300)]
TOKENS = (0, 1, 2, 3, 5, 8, 17)
FLOATS = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@pytest.fixture(autouse=True)
def _seed(seed: int = int(os.environ.get("TAUTEN_TEST_SEED", "0"))) -> None:
    torch.manual_seed(seed or torch.seed() % 2**31)


def random_mask(shape: tuple[int, int]) -> Tensor:
    """Rows keep anything from nothing to everything."""
    return torch.rand(shape) < torch.rand(shape[0], 1) * 1.2 - 0.1


def floats(shape: tuple[int, int], dtype: torch.dtype = torch.float32) -> SparseWeight:
    return SparseWeight.from_dense(torch.randn(shape).to(dtype), random_mask(shape))


def codes(shape: tuple[int, int], bits: int, group_size: int, kind: str = "none") -> SparseWeight:
    cells = (shape[0], -(-shape[1] // (group_size or shape[1])))
    dtype = torch.float32 if shape[0] == 5 else torch.float16
    zero = None
    if kind == "integer":
        zero = torch.randint(0, 2**bits, cells, dtype=torch.uint8)
    elif kind == "float":
        zero = torch.randn(cells).to(dtype)
    values = torch.randint(0, 2**bits, shape, dtype=torch.uint8)
    scale = (torch.rand(cells) + 0.5).to(dtype)
    return SparseWeight.from_codes(random_mask(shape), bits, group_size, values, scale, zero)


def assert_equals_float64(weight: SparseWeight, most: int = 17) -> None:
    matrix = weight.dequantize(torch.float64)
    x, bias = torch.randn(most, weight.in_features), torch.randn(weight.out_features)
    expected = x.double() @ matrix.T + bias.double()
    size = x.abs().double() @ matrix.abs().T + bias.abs() + 1e-30
    if weight.grid is not None and weight.scale is not None:  # code - zero may cancel
        size = size + 2**weight.grid.bits * x.abs().sum(1, keepdim=True) * weight.scale.max()
    for tokens in (*(count for count in TOKENS if count <= most), most):
        y = kernels.linear(x[:tokens], weight, bias)
        assert weight.interleaved and y.shape == (tokens, weight.out_features)
        assert ((y - expected[:tokens]).abs() <= 1e-6 * size[:tokens]).all(), (weight, tokens)


@pytest.mark.parametrize("dtype", FLOATS)
def test_floats_equal_float64(instruction_set: str, dtype: str) -> None:
    for shape in SHAPES:
        assert_equals_float64(floats(shape, FLOATS[dtype]))


@pytest.mark.parametrize("bits", range(1, 9))
def test_codes_equal_float64(instruction_set: str, bits: int) -> None:
    grids = [(32, "none"), (64, "integer"), (32, "float"), (0, "none"), (0, "integer")]
    for shape in SHAPES:
        for group_size, kind in grids:
            assert_equals_float64(codes(shape, bits, group_size, kind))


def test_two_of_four_equals_float64(instruction_set: str) -> None:
    mask = torch.tensor([True, False, True, False, False, True, False, True]).repeat(9, 9)
    weight = SparseWeight.from_dense(torch.randn(9, 72), mask)
    assert weight.pattern == "2:4"
    assert_equals_float64(weight)


def test_several_slabs_batches_and_threads(instruction_set: str) -> None:
    for weight in (floats((40, 2100), torch.bfloat16), codes((40, 2100), 3, 128, "integer")):
        assert_equals_float64(weight, 530 if instruction_set != "portable" else 20)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("tokens", [1, 8, 12])
def test_non_finite_tokens_act_as_in_the_dense_product(
    instruction_set: str, value: float, tokens: int
) -> None:
    weight, x = floats((33, 70)), torch.randn(tokens, 70)
    x[0, 69] = value
    y, expected = kernels.linear(x, weight), x @ weight.dequantize().T
    assert not y[0].isfinite().any()  # a pruned weight times infinity is NaN, as 0 * inf
    assert torch.equal(y.isnan(), expected.isnan())
    assert y[1:].isfinite().all()


def test_non_finite_weights_act_in_their_row_only(instruction_set: str) -> None:
    dense = torch.randn(5, 40)
    dense[2, 3] = float("nan")
    mask = torch.ones(5, 40).bool()
    mask[:, 7:] = False
    for tokens in (1, 12):
        y = kernels.linear(torch.randn(tokens, 40), SparseWeight.from_dense(dense, mask))
        assert y[:, 2].isnan().all() and y[:, [0, 1, 3, 4]].isfinite().all()


def test_dtype_gradient_and_activation() -> None:
    weight, bias = floats((33, 70)), torch.zeros(33, requires_grad=True)
    x = torch.randn(2, 3, 70, dtype=torch.bfloat16)
    y = kernels.linear(x, weight)
    assert y.dtype == torch.bfloat16 and y.shape == (2, 3, 33)
    assert torch.equal(kernels.linear(x, weight, None, "int8"), y)
    x = torch.randn(2, 70, requires_grad=True)
    kernels.linear(x, weight, bias).sum().backward()
    assert x.grad is not None and bias.grad is not None
    assert torch.allclose(x.grad, weight.dequantize().sum(0).expand(2, -1), atol=1e-4)


def test_groups_that_kernels_do_not_serve_fall_back() -> None:
    weight, x = codes((5, 70), 4, 48), torch.randn(3, 70)
    assert torch.equal(kernels.linear(x, weight), reference.linear(x, weight, None))
    assert not weight.interleaved


def test_layers_hold_pruned_weights(tmp_path: Path) -> None:
    layer, twin = (PackedLinear(floats((33, 70)), torch.randn(33)) for _ in range(2))
    x = torch.randn(3, 70)
    layer(x)
    twin.packed = copy.deepcopy(layer.packed)
    save_file(layer.state_dict(), tmp_path / "layer.safetensors")
    twin.load_state_dict(load_file(tmp_path / "layer.safetensors"))
    assert torch.equal(twin(x), layer(x))
    spec = {"": json.loads(json.dumps(module_spec(layer, None)))}
    loaded = install_empty(nn.Linear(70, 33), spec)
    loaded.load_state_dict(load_file(tmp_path / "layer.safetensors"), assign=True)
    assert torch.equal(loaded(x), layer(x))


def test_convolutions_take_pruned_weights() -> None:
    conv = nn.Conv2d(2, 4, 3, bias=False)
    mask = conv.weight > 0
    settings = {"stride": [1, 1], "padding": [0, 0], "dilation": [1, 1], "groups": 1}
    settings["padding_mode"] = "zeros"
    packed = PackedConv(
        SparseWeight.from_dense(conv.weight, mask),
        None,
        settings=settings | {"padding_mode": "zeros"},
    )
    image = torch.randn(1, 2, 5, 5)
    expected = nn.functional.conv2d(image, conv.weight * mask)
    assert torch.allclose(packed(image), expected, atol=1e-6)


def test_compiles_without_a_graph_break() -> None:
    weight = floats((33, 70))
    kernels.prepare(weight)

    @torch.compile(backend="eager", fullgraph=True)
    def run(x: Tensor) -> Tensor:
        return kernels.linear(x, weight) + 1

    x = torch.randn(3, 70)
    assert torch.equal(run(x), kernels.linear(x, weight) + 1)


def op_arguments(weight: SparseWeight, x: Tensor) -> list[object]:
    kernels.prepare(weight)
    bits, group_size = (weight.grid.bits, weight.grid.group_size) if weight.grid else (0, 0)
    tensors = [weight.mask, weight.starts, weight.values, weight.scale, weight.zero, None]
    return [x, *tensors, bits, group_size, weight.slots, weight.out_features]


def test_op_is_registered_soundly() -> None:
    op = torch.ops.tauten.sparse_linear.default
    for weight in (floats((33, 70)), codes((33, 70), 4, 32, "integer")):
        torch.library.opcheck(op, op_arguments(weight, torch.randn(2, 70)))


CORRUPTIONS = {
    "x is integer": (0, lambda x: x.int()),
    "x has other columns": (0, lambda x: torch.randn(2, 97)),
    "mask is short": (1, lambda mask: mask[:-1]),
    "mask has gaps": (1, lambda mask: torch.cat([mask, mask], 1)[:, ::2]),
    "mask is bool": (1, lambda mask: mask.bool()),
    "mask keeps more": (1, lambda mask: torch.full_like(mask, 255)),
    "mask keeps less": (1, lambda mask: torch.zeros_like(mask)),
    "starts are short": (2, lambda starts: starts[:-1]),
    "starts are int32": (2, lambda starts: starts.int()),
    "starts are negative": (2, lambda starts: starts - 8),
    "starts are beyond": (2, lambda starts: starts + 8),
    "starts fall": (2, lambda starts: starts.flip(0)),
    "starts are huge": (2, lambda starts: torch.full_like(starts, 2**62)),
    "values are short": (3, lambda values: values[:-1]),
    "values are float64": (3, lambda values: values.double()),
    "scale is short": (4, lambda scale: torch.ones(33, 2)),
    "zero is short": (5, lambda zero: torch.zeros(33, 1, dtype=torch.uint8)),
    "bias is long": (6, lambda bias: torch.zeros(34)),
    "bits are too many": (7, lambda bits: 9),
    "bits don't match": (7, lambda bits: 3),
    "group is odd": (8, lambda size: 48),
    "slots don't match": (9, lambda slots: slots + 8),
    "slots are odd": (9, lambda slots: slots + 1),
    "rows are none": (10, lambda rows: 0),
}


@pytest.mark.parametrize("tokens", [2, 20])
@pytest.mark.parametrize("corruption", CORRUPTIONS)
def test_bad_tensors_raise(corruption: str, tokens: int) -> None:
    position, change = CORRUPTIONS[corruption]
    for weight in (floats((33, 70)), codes((33, 70), 4, 32, "integer")):
        arguments = op_arguments(weight, torch.randn(tokens, 70))
        arguments[position] = change(arguments[position])  # type: ignore[no-untyped-call]
        with pytest.raises(InputError):
            torch.ops.tauten.sparse_linear(*arguments)


def test_damage_is_named() -> None:
    arguments = op_arguments(floats((33, 70)), torch.randn(2, 70))
    arguments[1] = torch.zeros_like(arguments[1])  # type: ignore[call-overload]
    with pytest.raises(CorruptError, match="mask"):
        torch.ops.tauten.sparse_linear(*arguments)
