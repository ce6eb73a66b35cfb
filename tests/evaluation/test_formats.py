"""Which layers are timed, on what; how long they take is no matter here."""

from typing import Any

import pytest
import torch
from tiny_models import tiny_bert, tiny_cnn, tiny_gpt2, tiny_llama
from torch import nn

import tauten
from tauten.evaluation import formats
from tauten.evaluation.formats import (
    call_overhead,
    distinct_layers,
    layer_inputs,
    time_formats,
    time_packed,
)
from tauten.models.packing import packed_layer, packed_modules, unpacked_layer
from tauten.runtime.modules import PackedEmbedding


@pytest.fixture(autouse=True)
def _few_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "MOST_COPIES", 2)


def test_inputs_are_those_of_the_call() -> None:
    model = tiny_llama()
    found = layer_inputs(model, lambda: model(input_ids=torch.tensor([[3]])))
    assert "model.embed_tokens" not in found and len(found) == 7 * 3 + 1
    embedded = model.model.layers[0].input_layernorm(model.model.embed_tokens(torch.tensor([[3]])))
    assert torch.equal(found["model.layers.0.self_attn.q_proj"], embedded)
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_hooks_go_away_when_the_call_fails() -> None:
    model = tiny_llama()
    with pytest.raises(ValueError):
        layer_inputs(model, lambda: model(input_ids=None))
    assert not any(module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("build", [tiny_llama, tiny_bert, tiny_cnn])
def test_packed_and_unpacked_models_have_the_same_layers(build: Any) -> None:
    found = distinct_layers(tauten.quantize(build(), 4, group_size=16))
    assert set(found) == set(distinct_layers(build()))
    assert all(f" {' x '.join(map(str, found[name].weight.shape))}" in name for name in found)


def test_transposed_layers() -> None:
    """GPT-2's layers hold their weight the other way round."""
    inside = {"Conv1D 64 x 192", "Conv1D 64 x 64", "Conv1D 64 x 256", "Conv1D 256 x 64"}
    assert set(distinct_layers(tiny_gpt2())) == {*inside, "Linear 256 x 64"}
    packed = {"Linear 192 x 64", "Linear 64 x 64", "Linear 256 x 64", "Linear 64 x 256"}
    assert set(distinct_layers(tauten.quantize(tiny_gpt2(), 4, group_size=16))) == packed


def test_unpacked_layers_compute_what_packed_ones_do() -> None:
    torch.manual_seed(0)
    packed = tauten.quantize(tiny_cnn(), 8, group_size=16, technique="rtn")
    layers = [layer for _, layer in packed_modules(packed)]
    assert len(layers) > 5
    for layer in layers:
        assert not isinstance(layer, PackedEmbedding)
        twin = unpacked_layer(layer)
        assert isinstance(twin, nn.Conv2d | nn.Linear)
        size = (2, twin.in_channels, 9, 9) if isinstance(twin, nn.Conv2d) else (2, 16)
        x = torch.randn(size)
        torch.testing.assert_close(twin(x), layer(x), rtol=1e-4, atol=1e-4)


def test_every_format_is_timed_beside_the_layer_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[nn.Module, torch.Size]] = []

    def seconds(layers: list[nn.Module], x: torch.Tensor) -> list[float]:
        """Of two copies; every third round is disturbed."""
        calls.append((layers[0], x.shape))
        disturbed = 9.0 if len(calls) % 3 == 0 else 0.0
        unpacked = isinstance(layers[0], nn.Linear)
        return [1.0 + disturbed, 3.0] if unpacked else [3.0, 3.0 + disturbed]

    monkeypatch.setattr(formats, "_seconds", seconds)
    layers = {"Linear 48 x 64": nn.Linear(64, 48), "Linear 1 x 1": nn.Linear(1, 1)}
    techniques = {"a": tauten.RTN(4, 32, activation="int8"), "b": tauten.ShareKMeans(bits=2)}
    times = list(time_formats(layers, techniques, rounds=4))
    # A weight of one number isn't made smaller, so that it isn't packed.
    assert {time.layer for time in times} == {"Linear 48 x 64"}
    assert [(time.format, time.tokens) for time in times] == [
        (label, tokens) for label in techniques for tokens in (1, 128)
    ]
    assert all((t.unpacked_s, t.packed_s, t.ratio) == (2.0, 3.0, 1.5) for t in times)
    assert len(calls) == len(times) * 2 * 5, "a turn each in four rounds and a warm-up"
    assert {shape for _, shape in calls} == {torch.Size((1, 64)), torch.Size((128, 64))}


def test_real_times_are_positive_and_leave_the_weight_alone() -> None:
    technique = tauten.Int8()
    module, x = nn.Linear(40, 30), torch.randn(1, 40)
    packed = technique.encode(module.weight.detach())
    before = packed_layer(module, packed, "int8")(x)
    assert min(time_packed(module, packed, "int8", x, rounds=1)) > 0
    assert torch.equal(packed_layer(module, packed, "int8")(x), before)
    assert call_overhead(technique) > 0
