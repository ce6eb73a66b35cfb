"""A packed layer stands in for the one it replaces: equal to the dequantized layer, or refused."""

import copy
import pickle
import threading
from collections.abc import Callable, Iterator
from types import MethodType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from tauten.core.errors import InputError
from tauten.formats.packed import PackedWeight
from tauten.models.packing import matrix_of, packed_layer, prepacked, unpacked_layer
from tauten.quantization import RTN
from tauten.runtime import kernels, library
from tauten.runtime.buffers import address
from tauten.runtime.modules import PackedConv, PackedLinear, PackedModule

pytestmark = pytest.mark.skipif(library.load() is None, reason="the native library isn't built")

Case = tuple[Callable[[], nn.Module], tuple[int, ...] | None]
CASES: dict[str, Case] = {
    "linear": (lambda: nn.Linear(64, 48), (3, 64)),
    "no bias": (lambda: nn.Linear(64, 48, bias=False), (3, 64)),
    "conv1d of transformers": (lambda: Conv1D(48, 64), (3, 64)),
    "conv1d": (lambda: nn.Conv1d(32, 16, 3, stride=2, padding=1), (2, 32, 9)),
    "conv2d": (lambda: nn.Conv2d(32, 16, 2, padding=1, padding_mode="circular"), (2, 32, 5, 5)),
    "conv3d": (lambda: nn.Conv3d(32, 8, 1), (2, 32, 2, 2, 2)),
    "groups": (lambda: nn.Conv1d(64, 16, 1, groups=2), (2, 64, 5)),
    "embedding": (lambda: nn.Embedding(40, 64, padding_idx=3), None),
}
every = pytest.mark.parametrize("kind", CASES)


def encoded(layer: Any, bits: int = 4) -> PackedWeight:
    return RTN(bits, 32, "integer").encode(matrix_of(layer, layer.weight.detach().float()))


def made(kind: str, bits: int = 4) -> tuple[nn.Module, PackedModule, Tensor]:
    """The layer with the weight that its packed twin stands for, the twin, an input."""
    build, shape = CASES[kind]
    torch.manual_seed(0)
    layer: Any = build().eval()
    packed = packed_layer(layer, encoded(layer, bits), "float")
    weight = packed.packed.dequantize(layer.weight.dtype)
    layer.weight = nn.Parameter(matrix_of(layer, weight).clone(), requires_grad=False)
    return layer, packed, torch.arange(6).view(2, 3) if shape is None else torch.randn(shape)


def close(found: Tensor, expected: Tensor, error: float = 1e-4) -> bool:
    assert found.dtype == expected.dtype and found.shape == expected.shape
    return bool((found.double() - expected.double()).norm() <= error * expected.double().norm())


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
    packed = packed_layer(layer, encoded(layer, 8), "float")
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
@pytest.mark.parametrize("bits", [3, 8])
@torch.no_grad()
def test_another_default_dtype_changes_nothing(
    kind: str, bits: int, default_dtype: torch.dtype
) -> None:
    _, packed, x = made(kind, bits)
    layer, twin, expected = CASES[kind][0](), made(kind, bits)[1], packed(x)
    torch.set_default_dtype(default_dtype)
    weight = encoded(layer.to(torch.float32), bits)
    assert torch.equal(twin(x), expected)
    torch.set_default_dtype(torch.float32)
    assert torch.equal(weight.dequantize(), encoded(layer, bits).dequantize())


def test_native_code_gets_no_buffer_of_another_kind() -> None:
    right = torch.zeros(4, 3, dtype=torch.float32)
    assert address("x", right, (4, 3)) == right.data_ptr()
    for wrong in (right.double(), right[:3], right.t().contiguous().t(), right.to("meta")):
        with pytest.raises(InputError, match="x is"):
            address("x", wrong, (4, 3))


@pytest.mark.parametrize("bits", [2, 4, 8])
@torch.no_grad()
def test_threads_that_meet_in_the_first_call_get_the_same(bits: int) -> None:
    _, once, x = made("linear", bits)
    expected = once(x)
    for _ in range(8):
        _, fresh, _ = made("linear", bits)
        gate, found = threading.Barrier(8), []

        def work(layer: nn.Module = fresh, gate: Any = gate, found: list[Tensor] = found) -> None:
            gate.wait(60)
            found.append(layer(x))

        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(found) == 8 and all(torch.equal(y, expected) for y in found)


@torch.no_grad()
def test_layout_is_told_when_all_tensors_have_changed() -> None:
    """The order that makes threads safe, whatever their timing."""
    weight: Any = encoded(nn.Linear(64, 48))
    order: list[str] = []
    plain = type(weight).__setattr__

    class Watched(type(weight)):  # type: ignore[misc]
        def __setattr__(self, name: str, value: Any) -> None:
            order.append(name)
            plain(self, name, value)

    weight.__class__ = Watched
    assert kernels.prepare(weight)
    assert len(order) > 1 and order[-1] == weight.told_by


def exported(layer: nn.Module, x: Tensor) -> Tensor:
    y: Tensor = torch.export.export(layer, (x,)).module()(x)
    return y


def exported_for_any_batch(layer: nn.Module, x: Tensor) -> Tensor:
    sizes = ({0: torch.export.Dim("batch", min=2, max=64)},)
    program = torch.export.export(layer, (x,), dynamic_shapes=sizes).module()
    program(torch.cat([x, x]))
    y: Tensor = program(x)
    return y


def compiled(layer: nn.Module, x: Tensor) -> Tensor:
    torch.compiler.reset()
    y: Tensor = torch.compile(layer, backend="aot_eager", fullgraph=True)(x)
    return y


def called_by(layer: nn.Module, x: Tensor) -> Tensor:
    y: Tensor = torch.func.functional_call(layer, dict(layer.named_buffers()), (x,))
    return y


WAYS: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
    "export": exported,
    "compile": compiled,
    "export of any batch": exported_for_any_batch,
    "fx": lambda layer, x: torch.fx.symbolic_trace(nn.Sequential(layer))(x),
    "deepcopy": lambda layer, x: copy.deepcopy(layer)(x),
    "pickle": lambda layer, x: pickle.loads(pickle.dumps(layer))(x),
    "functional_call": called_by,
}


@every
@pytest.mark.parametrize("way", WAYS)
@torch.no_grad()
def test_fresh_layer_serves_every_way_of_calling(kind: str, way: str) -> None:
    _, packed, x = made(kind)
    expected = made(kind)[1](x)
    assert close(WAYS[way](prepacked(packed), x), expected)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@every
def test_vmap_and_forward_derivatives(kind: str) -> None:
    layer, packed, x = made(kind)
    assert close(torch.vmap(packed)(x[:, None]), torch.vmap(layer)(x[:, None]))
    if x.is_floating_point():
        _, expected = torch.func.jvp(layer, (x,), (x.cos(),))
        value, found = torch.func.jvp(packed, (x,), (x.cos(),))
        assert close(found, expected) and close(value, layer(x).detach())
