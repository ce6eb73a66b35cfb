"""What doesn't reach workers is refused or said, never left out without a word."""

import copy
import logging
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from tiny_models import tiny_llama
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx

import tauten
import tauten.methods
from tauten.core.errors import InputError

X = torch.randn(4, 8, generator=torch.manual_seed(0))


def plain() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 8), nn.Tanh()).eval()


@pytest.fixture(params=["parallelize", "distribute"])
def start(request: pytest.FixtureRequest) -> Any:
    return getattr(tauten, request.param)


DERIVATIVES: dict[str, Any] = {
    "grad": lambda f: torch.func.grad(lambda x: f(x).sum())(X),
    "jacrev": lambda f: torch.func.jacrev(f)(X),
    "jvp": lambda f: torch.func.jvp(f, (X,), (X,)),
    "vmap": lambda f: torch.func.vmap(f)(X),
}


@pytest.mark.parametrize("kind", DERIVATIVES)
def test_derivatives_are_refused(start: Any, kind: str) -> None:
    with start(plain(), workers=1) as made, pytest.raises(InputError, match="train=True"):
        DERIVATIVES[kind](made)


TRACERS: dict[str, Any] = {
    "compile": lambda made: torch.compile(made, backend="eager")(X),
    "compile around it": lambda made: torch.compile(nn.Sequential(made), backend="eager")(X),
    "export": lambda made: torch.export.export(made, (X,)),
    "fx": lambda made: torch.fx.symbolic_trace(nn.Sequential(made)),
    "make_fx": lambda made: make_fx(made)(X),
    "trace": lambda made: torch.jit.trace(made, (X,)),
    "script": lambda made: torch.jit.script(made),
}


@pytest.mark.filterwarnings("ignore:`torch.jit")
@pytest.mark.parametrize("tracer", TRACERS)
def test_tracing_is_refused_before_anything_starts(start: Any, tracer: str) -> None:
    torch.compiler.reset()
    with start(plain(), workers=2) as made:
        with pytest.raises(InputError, match="hands calls to workers, which no graph can hold"):
            TRACERS[tracer](made)
        assert not made._closers or not made.cluster.workers


@pytest.mark.parametrize("way", ["map", "generate", "plan"])
def test_other_calls_say_the_same_as_forward(
    start: Any, way: str, caplog: pytest.LogCaptureFixture
) -> None:
    model = plain() if way != "generate" else tiny_llama()
    ids = torch.arange(8).view(2, 4)
    with start(model, workers=1) as made, torch.autocast("cpu", torch.bfloat16):
        if way == "map":
            assert [y.dtype for y in made.map([X, X])] == [torch.float32] * 2
        elif way == "generate":
            made.generate(input_ids=ids, max_new_tokens=2)
        elif start is tauten.parallelize:
            assert made.plan(X).layout.workers == 1
        else:
            return
    assert caplog.text.count("autocast doesn't reach workers") == 1


class Counting(nn.Module):
    """Its outputs tell how often it was called."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return self.layer(x) + self.calls


class Replacing(Counting):
    """Puts a new tensor in the buffer's place."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls = self.calls + 1
        return self.layer(x) + self.calls


@pytest.mark.parametrize("kind", [Counting, Replacing])
@pytest.mark.parametrize("planned", [True, False])
def test_a_model_counts_its_users_calls_alone(
    start: Any, kind: Any, planned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    model, alone = kind().eval(), kind().eval()
    alone.load_state_dict(model.state_dict())
    with start(model, workers=2, mode="data") as made, torch.no_grad():
        if start is tauten.distribute:
            made.wait_for(2)
        elif planned:
            made.plan(X)
        for _ in range(3):
            torch.testing.assert_close(made(X), alone(X))
    assert "can't be cut by rows" in caplog.text


def test_autocast_is_left_out_and_said(start: Any, caplog: pytest.LogCaptureFixture) -> None:
    model = plain()
    with start(model, workers=1) as made, torch.no_grad():
        for _ in range(2):
            with torch.autocast("cpu", torch.bfloat16):
                assert made(X).dtype == torch.float32
        torch.testing.assert_close(made(X), model(X))
    assert caplog.text.count("autocast doesn't reach workers") == 1


def test_conversions_are_refused(start: Any) -> None:
    with start(plain(), workers=1) as made:
        for convert in (made.half, made.bfloat16, made.double, lambda: made.to("meta")):
            with pytest.raises(InputError, match=r"convert it to .* first"):
                convert()
        assert made.to("cpu") is made and made.float() is made and not made.training


def test_copies_and_attributes_name_the_model(start: Any) -> None:
    with start(plain(), workers=1) as made:
        with pytest.raises(InputError, match="can't be copied or saved: do that with the model"):
            copy.deepcopy(made)
        with pytest.raises(AttributeError, match="no attribute 'weight': it only calls the model"):
            made.weight  # noqa: B018


def test_a_cache_that_is_left_out_is_said(start: Any, caplog: pytest.LogCaptureFixture) -> None:
    ids = torch.arange(8).view(2, 4)
    with start(tiny_llama(), workers=1) as made:
        for _ in range(2):
            assert made(input_ids=ids).past_key_values is None
        assert caplog.text.count("return no cache (past_key_values)") == 1
        caplog.clear()
        made(input_ids=ids, use_cache=False)
        assert not caplog.text


@pytest.mark.parametrize("call", ["quantize", "compress", "parallelize", "distribute"])
def test_training_mode_is_said_where_it_matters(
    call: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    model: Any = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8))
    getattr(model, call)()
    assert "was in training mode; the result is in evaluation mode" in caplog.text
    caplog.clear()
    for quiet in (model.eval(), plain().train(), nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.0))):
        getattr(quiet, call)()
        assert "training mode" not in caplog.text


def test_what_is_packed_already_is_named() -> None:
    model: Any = plain()
    with pytest.raises(InputError, match="packed already: pass the original"):
        model.quantize().quantize()
    lstm: Any = nn.LSTM(4, 4)
    with pytest.raises(
        InputError, match=r"weights are held by LSTM; none.*pass a model with such layers"
    ):
        lstm.quantize()


def test_threads_may_make_the_first_calls(start: Any) -> None:
    model = plain()
    inputs = [X + n for n in range(8)]
    with start(model, workers=2, mode="data") as made, ThreadPoolExecutor(8) as threads:
        outputs = list(threads.map(made, inputs))
    with torch.no_grad():
        for x, output in zip(inputs, outputs, strict=True):
            torch.testing.assert_close(output, model(x))
