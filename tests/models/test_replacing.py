"""What users put on a model: kept, folded into the packed weight, or refused by name."""

import copy
import threading
from collections.abc import Callable, Iterator
from types import MethodType
from typing import Any

import pytest
import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from tiny_models import tiny_llama
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune, spectral_norm, weight_norm

import tauten
from tauten.core.errors import InputError
from tauten.runtime import library
from tauten.runtime.modules import PackedLinear

pytestmark = pytest.mark.skipif(library.load() is None, reason="the native library isn't built")
TOKENS = torch.arange(1, 13).view(2, 6)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32)).eval()


def example() -> Tensor:
    return torch.randn(5, 64, generator=torch.manual_seed(1))


class Doubled(nn.Module):
    """A parametrization."""

    def forward(self, weight: Tensor) -> Tensor:
        return weight * 2


def doubled(layer: nn.Module) -> None:
    parametrize.register_parametrization(layer, "weight", Doubled())


def old_weight_norm(layer: Any) -> None:
    with pytest.warns(FutureWarning):
        weight_norm(layer)
    layer.weight_g.data *= 3


def new_weight_norm(layer: Any) -> None:
    parametrizations.weight_norm(layer)
    layer.parametrizations.weight.original0.data *= 3


def pruned(layer: nn.Module) -> None:
    prune.l1_unstructured(layer, "weight", 0.5)


FOLDED: dict[str, Callable[[Any], Any]] = {
    "parametrize": doubled,
    "weight_norm, hook": old_weight_norm,
    "weight_norm, parametrization": new_weight_norm,
    "spectral_norm, hook": spectral_norm,
    "spectral_norm, parametrization": parametrizations.spectral_norm,
    "prune": pruned,
}


@pytest.mark.parametrize("weights", ["fresh", "used", "loaded"])
@pytest.mark.parametrize("way", FOLDED)
@torch.no_grad()
def test_packed_weight_is_what_the_layer_computes_with(way: str, weights: str) -> None:
    model = network()
    for layer in (model[0], model[2]):
        FOLDED[way](layer)
    model.eval()
    if weights == "used":
        model(example())
    if weights == "loaded":  # what was computed before is stale
        state = {name: value * 1.5 for name, value in model.state_dict().items()}
        model.load_state_dict(state)
    held, kinds = copy.deepcopy(model.state_dict()), [type(m) for m in model.modules()]
    packed = tauten.quantize(model, 8)
    again = copy.deepcopy(held)
    assert all(torch.equal(model.state_dict()[name], again[name]) for name in again)
    assert [type(m) for m in model.modules()] == kinds
    expected = model(example())
    assert sum(isinstance(layer, PackedLinear) for layer in packed) == 2
    assert (packed(example()) - expected).norm() < 3e-2 * expected.norm()


@torch.no_grad()
def test_hooks_and_methods_count_in_the_result_and_the_model_keeps_its_own() -> None:
    model = network()

    def forward(self: Any, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight, self.bias) * 2

    model[0].forward = MethodType(forward, model[0])
    model[0].register_forward_pre_hook(lambda module, args: (args[0] - 1,))
    model[2].register_forward_hook(lambda module, args, y: y * 3)
    expected = model(example())
    packed = tauten.quantize(model, 8)
    assert sum(isinstance(layer, PackedLinear) for layer in packed) == 2
    assert (packed(example()) - expected).norm() < 3e-2 * expected.norm()
    assert torch.equal(model(example()), expected)


def by_closure(model: Any) -> Any:
    before = model[2].forward
    model[2].forward = lambda x: before(x) * 2
    return model


def by_accelerate(model: Any) -> Any:
    add_hook_to_module(model[2], AlignDevicesHook(execution_device="cpu"))
    return model


def hooked_wrapper(model: Any) -> Any:
    wrapped = nn.DataParallel(model)
    wrapped.register_forward_hook(lambda module, args, y: y * 2)
    return wrapped


def traced(model: Any) -> Any:
    return torch.jit.trace(model, example())


def exported(model: Any) -> Any:
    return torch.export.export(model, (example(),)).module()


REFUSED: dict[str, tuple[Callable[[Any], Any], str]] = {
    "closure": (by_closure, r"forward of 2 \(Linear\).*make it a method"),
    "accelerate": (by_accelerate, r"2 \(Linear\) has a hook of accelerate: take it off"),
    "hooked wrapper": (hooked_wrapper, "DataParallel around Sequential has hooks: pass the module"),
    "jit": (traced, "TopLevelTracedModule.*pass the module that it was made from"),
    "export": (exported, "without layers: pass the module that it was made from"),
}


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
@pytest.mark.parametrize("way", REFUSED)
def test_what_would_compute_with_the_original_is_refused_by_name(way: str) -> None:
    change, message = REFUSED[way]
    with pytest.raises(InputError, match=message):
        tauten.quantize(change(network()), 8)


WRAPPED: dict[str, Callable[[nn.Module], Any]] = {
    "compiled": lambda model: torch.compile(model, backend="eager"),
    "DataParallel": nn.DataParallel,
    "fx": torch.fx.symbolic_trace,
}


@pytest.mark.parametrize("way", WRAPPED)
@torch.no_grad()
def test_wrapped_model_gives_what_the_model_inside_gives(way: str) -> None:
    found = tauten.quantize(WRAPPED[way](network()), 8)
    assert sum(isinstance(layer, PackedLinear) for layer in found.modules()) == 2
    assert torch.equal(found(example()), tauten.quantize(network(), 8)(example()))


@pytest.fixture(params=[torch.bfloat16, torch.float64])
def default_dtype(request: pytest.FixtureRequest) -> Iterator[torch.dtype]:
    before = torch.get_default_dtype()
    yield request.param
    torch.set_default_dtype(before)


def generated(model: Any) -> Tensor:
    tokens: Tensor = model.generate(TOKENS, max_new_tokens=6, do_sample=False, pad_token_id=0)
    return tokens


@pytest.mark.parametrize("bits", [4, 8])
@torch.no_grad()
def test_default_dtype_around_quantize_and_generate(bits: int, default_dtype: torch.dtype) -> None:
    model = tiny_llama()
    plain = tauten.quantize(model, bits)
    expected, tokens = plain(TOKENS).logits, generated(plain)
    torch.set_default_dtype(default_dtype)
    assert torch.equal(generated(plain), tokens)
    packed = tauten.quantize(model, bits)
    assert torch.equal(packed(TOKENS).logits, expected)
    assert torch.equal(generated(packed), tokens)


@pytest.mark.parametrize(
    "technique", [tauten.Ternary(), tauten.GPTQ(4), tauten.KQuant(4)], ids=lambda t: t.name
)
def test_autocast_around_quantize_changes_no_weight(technique: Any) -> None:
    options: dict[str, Any] = {"technique": technique, "data": [example()]}
    expected = tauten.quantize(network(), **options)
    with torch.autocast("cpu", torch.bfloat16):
        packed = tauten.quantize(network(), **options)
    assert torch.equal(packed[0].weight, expected[0].weight)
    assert torch.equal(packed[2].weight, expected[2].weight)


@torch.no_grad()
def test_threads_on_a_fresh_language_model_get_what_one_gets() -> None:
    model = tiny_llama()
    one = tauten.quantize(model, 4)
    tokens, logits = generated(one), one(TOKENS).logits
    fresh, gate, found = tauten.quantize(model, 4), threading.Barrier(8), []

    def work() -> None:
        gate.wait(60)
        found.append((generated(fresh), fresh(TOKENS).logits))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert all(torch.equal(t, tokens) and torch.equal(y, logits) for t, y in found)


class Locked(nn.Module):
    """Can't be copied."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.guard = nn.Linear(8, 8), threading.Lock()


@pytest.mark.parametrize("call", ["quantize", "compress"])
def test_what_cant_be_copied_is_named(call: str) -> None:
    model = nn.Sequential(nn.Linear(8, 8), Locked())
    with pytest.raises(InputError, match=r"Sequential can't be copied: 1\.guard .*lock.*take it"):
        getattr(tauten, call)(model)
