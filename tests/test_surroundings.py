"""What a user has switched on in torch around a call changes nothing in what comes back."""

import contextlib
import functools
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import tauten
from tauten.core.dtypes import default_dtype


@contextlib.contextmanager
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


AROUND: dict[str, Callable[[], contextlib.AbstractContextManager[object]]] = {
    "inference mode": torch.inference_mode,
    "no gradients": torch.no_grad,
    "bfloat16 by default": lambda: default_dtype(torch.bfloat16),
    "float64 by default": lambda: default_dtype(torch.float64),
    "another device by default": lambda: torch.device("meta"),
    "deterministic algorithms": deterministic,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
}


def net() -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10)
    return nn.Sequential(*layers).float().eval()


def rows(count: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, 64, generator=generator, dtype=torch.float32)


with torch.no_grad():
    LABELLED = [(x, net()(x).argmax(-1)) for x in rows(600).split(50)]
DATA = [rows(256)]
CALLS: dict[str, Callable[[nn.Module], nn.Module | None]] = {
    "autoround": lambda model: tauten.quantize(model, technique="autoround", data=DATA),
    "distill": lambda model: tauten.compress(model, technique="distill", data=DATA),
    "optimize": lambda model: (
        tauten.optimize(model, LABELLED, tauten.Goal(max_drop=0.2), effort="quick").model
    ),
}


@functools.cache
def wanted(call: str) -> nn.Module:
    made = CALLS[call](net())
    assert made is not None
    return made


@pytest.mark.parametrize("around", AROUND)
@pytest.mark.parametrize("call", CALLS)
def test_the_same_comes_back(around: str, call: str) -> None:
    model, expected = net(), wanted(call)
    with AROUND[around]():
        made = CALLS[call](model)
    assert made is not None
    with torch.no_grad():
        assert torch.equal(made(rows(32)), expected(rows(32)))


def test_what_was_made_in_inference_mode_can_be_trained_on() -> None:
    expected = wanted("distill")
    with torch.inference_mode():
        made = tauten.compress(net(), technique="distill", data=[rows(256)])
    with torch.no_grad():
        assert torch.equal(made(rows(32)), expected(rows(32)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_folder_is_opened_in_float32(llama_folder: Path, dtype: torch.dtype) -> None:
    ids = torch.arange(40)[None]
    wanted = tauten.quantize(llama_folder, 4)
    with default_dtype(dtype):
        made = tauten.quantize(llama_folder, 4)
    with torch.no_grad():
        assert torch.equal(made(ids).logits, wanted(ids).logits)
