"""A packed layer stands in for the one it replaces: equal to the dequantized layer, or refused."""

import copy
from collections.abc import Callable, Iterator
from types import MethodType
from typing import Any

import pytest
import torch
from replaced_layers import KINDS, close, encoded, made
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune
from transformers.pytorch_utils import Conv1D

from tauten.core.errors import InputError
from tauten.models.packing import packed_layer, unpacked_layer
from tauten.runtime import library
from tauten.runtime.buffers import address
from tauten.runtime.modules import PackedConv, PackedLinear

pytestmark = pytest.mark.skipif(library.load() is None, reason="the native library isn't built")

every = pytest.mark.parametrize("kind", KINDS)


@every
def test_public_attributes_are_those_of_the_layer(kind: str) -> None:
    layer, packed, _ = made(kind)
    layer.note = "a user's"  # type: ignore[assignment]
    packed = packed_layer(layer, encoded(layer), "float")
    for name in (name for name in dir(layer) if not name.startswith("_")):
        expected, found = getattr(layer, name), getattr(packed, name)
        if isinstance(expected, Tensor):
            assert found.shape == expected.shape and found.dtype == expected.dtype, name
        elif not callable(expected):
            assert found == expected, name
    assert close(packed.weight.clone(), layer.weight, 0.2)
    like = next(packed.parameters())
    assert (like.device, like.dtype) == (torch.device("cpu"), torch.float32)
    assert next(packed.to(torch.bfloat16).parameters()).dtype == torch.bfloat16


@every
@torch.no_grad()
def test_calls_by_position_and_by_name(kind: str) -> None:
    layer, packed, x = made(kind)
    assert close(packed(x), layer(x))
    name = "x" if isinstance(layer, Conv1D) else "input"
    assert torch.equal(packed(**{name: x}), packed(x))


@every
@torch.no_grad()
def test_autocast_and_casts_give_the_dtype_of_the_layer(kind: str) -> None:
    layer, packed, x = made(kind)
    with torch.autocast("cpu", torch.bfloat16):
        assert close(packed(x), layer(x), 2e-2)
    for dtype in (torch.float64, torch.bfloat16):
        z = x.to(dtype) if x.is_floating_point() else x
        assert close(packed.to(dtype)(z), layer.to(dtype)(z), 2e-2)


def assign(layer: Any) -> None:
    layer.weight = nn.Parameter(torch.zeros(48, 64))


def scaled_in_place(layer: Any) -> None:
    layer.weight.data *= 2


def merged(layer: Any) -> None:
    layer.weight.data += torch.ones(48, 64)


def by_data(layer: Any) -> None:
    layer.weight.data = torch.zeros(48, 64)


WRITES: dict[str, Callable[[Any], Any]] = {
    "assigned": assign,
    "data assigned": by_data,
    "merged": merged,
    "scaled": scaled_in_place,
    "zero_": lambda layer: layer.weight.zero_(),
    "detached": lambda layer: layer.weight.detach().fill_(1),
    "several": lambda layer: torch._foreach_mul_([layer.weight], 2.0),
    "a row": lambda layer: layer.weight[0].add_(1),
    "an item": lambda layer: layer.weight.__setitem__(0, 1.0),
    "init": lambda layer: nn.init.normal_(layer.weight),
    "out": lambda layer: torch.zeros(48, 64, out=layer.weight),
    "reset": lambda layer: layer.reset_parameters(),
    "registered": lambda layer: layer.register_parameter("weight", None),
    "parametrized": lambda layer: parametrize.register_parametrization(layer, "weight", nn.ReLU()),
    "normed": lambda layer: nn.utils.parametrizations.spectral_norm(layer),
    "pruned": lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
}


@pytest.mark.parametrize("write", WRITES)
def test_a_weight_can_be_read_and_not_written(write: str) -> None:
    _, packed, x = made("linear")
    with torch.no_grad():
        expected = packed(x)
        with pytest.raises(InputError, match=r"is a copy.*dense layer"):
            WRITES[write](packed)
        assert torch.equal(packed(x), expected)


@torch.no_grad()
def test_a_bias_can_be_parametrized() -> None:
    layer, packed, x = made("linear")
    for module in (layer, packed):
        parametrize.register_parametrization(module, "bias", nn.ReLU())
    assert parametrize.is_parametrized(packed) and close(packed(x), layer(x))


@torch.no_grad()
def test_what_is_made_of_a_read_weight_is_the_users_own() -> None:
    _, packed, _ = made("linear")
    product, own = packed.weight @ torch.ones(64, 2), nn.Parameter(packed.weight)
    assert type(product) is Tensor and type(own) is nn.Parameter
    assert own.mul_(2).equal(2 * packed.weight) and packed.weight.clone().zero_().sum() == 0


@every
@torch.no_grad()
def test_hooks_and_a_forward_of_its_own_are_kept(kind: str) -> None:
    layer, _, x = made(kind)

    def forward(self: Any, x: Tensor) -> Tensor:
        y: Tensor = type(self).forward(self, x)
        return y + 1

    layer.forward = MethodType(forward, layer)  # type: ignore[method-assign]
    layer.register_forward_hook(lambda module, args, y: y * 3)
    layer.register_forward_pre_hook(lambda module, args: (args[0].flip(0),))
    packed = packed_layer(layer, encoded(layer, "8 bits"), "float")
    assert close(packed(x), layer(x), 2e-2)
    twin = copy.deepcopy(packed)  # its forward is a method of its own
    assert twin.forward.__self__ is twin and torch.equal(twin(x), packed(x))


@every
@torch.no_grad()
def test_the_layer_of_torch_comes_back(kind: str) -> None:
    layer, packed, x = made(kind)
    if isinstance(packed, PackedLinear | PackedConv):
        assert close(unpacked_layer(packed)(x), layer(x))


@pytest.fixture(params=[torch.bfloat16, torch.float64])
def default_dtype(request: pytest.FixtureRequest) -> Iterator[torch.dtype]:
    before = torch.get_default_dtype()
    yield request.param
    torch.set_default_dtype(before)


@every
@pytest.mark.parametrize("form", ["3 bits", "8 bits", "codebook", "sparse"])
@torch.no_grad()
def test_another_default_dtype_changes_nothing(
    kind: str, form: str, default_dtype: torch.dtype
) -> None:
    _, packed, x = made(kind, form)
    layer, twin, expected = KINDS[kind][0](), made(kind, form)[1], packed(x)
    torch.set_default_dtype(default_dtype)
    weight = encoded(layer.to(torch.float32), form)
    assert torch.equal(twin(x), expected)
    torch.set_default_dtype(torch.float32)
    assert torch.equal(weight.dequantize(), encoded(layer, form).dequantize())


def test_native_code_gets_no_buffer_of_another_kind() -> None:
    right = torch.zeros(4, 3, dtype=torch.float32)
    assert address("x", right, (4, 3)) == right.data_ptr()
    for wrong in (right.double(), right[:3], right.t().contiguous().t(), right.to("meta")):
        with pytest.raises(InputError, match="x is"):
            address("x", wrong, (4, 3))


@torch.no_grad()
def test_a_state_dict_holds_the_packed_weight_and_nothing_that_says_a_dtype() -> None:
    """Files would get a tensor without elements a layer; and older ones lack it."""
    _, packed, x = made("linear")
    state, twin = packed.state_dict(), made("linear")[1].to(torch.bfloat16)
    assert not [name for name in state if "dtype_like" in name]
    assert twin.load_state_dict(state, strict=True).missing_keys == []
    assert twin(x.to(torch.bfloat16)).dtype == torch.bfloat16
