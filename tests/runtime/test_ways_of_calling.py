"""Every way of calling serves a fresh packed layer, and gives what the dequantized layer gives."""

import copy
import pickle
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from replaced_layers import FORMATS, INTEGERS, KINDS, close, encoded, made
from torch import Tensor, nn

from tauten.models.packing import prepacked
from tauten.runtime import kernels, library

pytestmark = pytest.mark.skipif(library.load() is None, reason="the native library isn't built")

PAIRS = [(kind, "4 bits") for kind in KINDS] + [
    (kind, form) for kind in ("linear", "groups", "derived embedding") for form in FORMATS
]
ERRORS = {"two-level": 1e-3}  # kernels read its scales in float16
every_pair = pytest.mark.parametrize(("kind", "form"), dict.fromkeys(PAIRS))


@pytest.mark.parametrize("form", INTEGERS)
@torch.no_grad()
def test_threads_that_meet_in_the_first_call_get_the_same(form: str) -> None:
    _, once, x = made("linear", form)
    expected = once(x)
    for _ in range(8):
        _, fresh, _ = made("linear", form)
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


@every_pair
@pytest.mark.parametrize("way", WAYS)
@torch.no_grad()
def test_fresh_layer_serves_every_way_of_calling(kind: str, form: str, way: str) -> None:
    layer, packed, x = made(kind, form)
    assert close(WAYS[way](prepacked(packed), x), layer(x), ERRORS.get(form, 1e-4))


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@every_pair
@torch.no_grad()
def test_vmap(kind: str, form: str) -> None:
    layer, packed, x = made(kind, form)
    found, expected = torch.vmap(packed)(x[:, None]), torch.vmap(layer)(x[:, None])
    assert close(found, expected, ERRORS.get(form, 1e-4))


@every_pair
@pytest.mark.parametrize("activation", ["float", "int8"])
def test_derivatives_are_those_of_the_dequantized_layer(
    kind: str, form: str, activation: str
) -> None:
    layer, packed, x = made(kind, form, activation)
    if not x.is_floating_point():
        return
    rounds = activation == "int8"  # activations, and the entries of a codebook
    error, rounding = (2e-2, 5e-2) if rounds else (1e-4, ERRORS.get(form, 1e-4))
    x.requires_grad_()
    y = layer(x)
    direction = torch.randn_like(y)
    (expected,) = torch.autograd.grad(y, x, direction)
    (found,) = torch.autograd.grad(packed(x), x, direction)
    assert close(found, expected, error)
    _, expected = torch.func.jvp(layer, (x.detach(),), (x.detach().cos(),))
    value, found = torch.func.jvp(packed, (x.detach(),), (x.detach().cos(),))
    assert close(found, expected, error) and close(value, y.detach(), rounding)
