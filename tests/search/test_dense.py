"""Pruned layers that are slower packed than dense are written out; timings here are made up."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import tiny_cnn, tiny_llama
from torch import Tensor, nn

import tauten
from tauten.models.packing import packed_modules
from tauten.search import dense
from tauten.search.dense import WRITTEN_OUT, slow_pruned_layers

TOKENS = torch.arange(8)[None]
TECHNIQUE = tauten.PruneMagnitude(0.5)


@pytest.fixture
def narrow_is_slow(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Packed layers of 64 inputs take twice the time of dense ones, others half of it."""
    timed: list[Any] = []

    def time_packed(module: nn.Module, packed: Any, *_: Any) -> tuple[float, float]:
        assert torch.equal(module.weight, packed.dequantize())
        timed.append(tuple(module.weight.shape))
        return 1.0, 2.0 if packed.in_features == 64 else 0.5

    monkeypatch.setattr(dense, "time_packed", time_packed)
    return timed


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(TOKENS).logits
    return found


def test_slow_layers_are_dense_in_memory_and_it_is_said(
    narrow_is_slow: list[Any], caplog: pytest.LogCaptureFixture
) -> None:
    model = tiny_llama(tied=False)
    with caplog.at_level(logging.WARNING):
        pruned = tauten.compress(model, technique=TECHNIQUE)
    packed = dict(packed_modules(pruned))
    inner = {name.split(".")[-1] for name in packed}
    assert inner == {"down_proj", "embed_tokens"}  # of 96 inputs, and no product
    assert len(narrow_is_slow) == len(set(narrow_is_slow)), "each kind of layer is timed once"
    query = pruned.get_submodule("model.layers.0.self_attn.q_proj")
    assert type(query) is nn.Linear and float((query.weight == 0).float().mean()) == 0.5
    more = [m for n, m in pruned.named_modules() if isinstance(m, nn.Linear)]
    assert f"{len(more)} pruned layers are slower packed" in caplog.text
    assert "in memory, which grows by" in caplog.text


def test_artifact_stays_packed_and_loads_alike(narrow_is_slow: list[Any], tmp_path: Path) -> None:
    tiny_llama(tied=False).save_pretrained(tmp_path / "in")
    made = tauten.compress(tmp_path / "in", technique=TECHNIQUE, out=tmp_path / "slow")
    manifest = json.loads((tmp_path / "slow" / "tauten.json").read_text())
    assert "model.layers.0.mlp.gate_proj" in manifest["written_out"]
    assert {row["instead"] for row in manifest["reverted"]} == {WRITTEN_OUT}
    assert WRITTEN_OUT in (tmp_path / "slow" / "report.html").read_text()
    loaded = tauten.load(tmp_path / "slow")
    assert dict(packed_modules(loaded)).keys() == dict(packed_modules(made)).keys()
    assert torch.equal(logits(loaded), logits(made))
    tensors = sum(t.nbytes for t in (*loaded.parameters(), *loaded.buffers()))
    assert manifest["memory_bytes"] == pytest.approx(tensors, rel=0.02), "memory isn't smaller"


def test_fast_layers_stay_packed(tmp_path: Path) -> None:
    tiny_llama(tied=False).save_pretrained(tmp_path / "in")
    made = tauten.compress(tmp_path / "in", technique=TECHNIQUE, out=tmp_path / "fast")
    manifest = json.loads((tmp_path / "fast" / "tauten.json").read_text())
    assert manifest["written_out"] == manifest["reverted"] == []
    assert "model.layers.0.mlp.gate_proj" in dict(packed_modules(made))


def test_file_is_as_small_with_slow_layers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    sizes = []
    for ratio in (0.5, 2.0):
        monkeypatch.setattr(dense, "time_packed", lambda *_, r=ratio: (1.0, r))
        tauten.compress(tiny_llama(), technique=TECHNIQUE, out=tmp_path / str(ratio))
        sizes.append((tmp_path / str(ratio) / "model.safetensors").read_bytes())
    assert sizes[0] == sizes[1]


def test_convolutions_and_grids_are_timed_too(narrow_is_slow: list[Any]) -> None:
    calls = torch.randn(2, 1, 12, 12)
    technique = tauten.PruneSparseGPT(0.5, bits=8, group_size=32)
    before = tauten.compress(tiny_cnn(), technique=technique, data=[calls])
    assert any(len(shape) == 4 for shape in narrow_is_slow)
    assert not slow_pruned_layers(before).names
    assert not slow_pruned_layers(tauten.quantize(tiny_cnn(), technique="rtn")).names
