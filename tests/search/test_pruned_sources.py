"""A model that comes pruned keeps its zeros, or it is said that they are lost."""

import logging

import pytest
import torch
from torch import nn

import tauten
from tauten.search.techniques import TECHNIQUES

X = torch.randn(400, 32, generator=torch.manual_seed(1))
PACKERS = [
    n for n, kind in TECHNIQUES.items() if kind.pillar == "quantize" and not n.startswith("tune")
]


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32))
    ).eval()


def pruned() -> nn.Sequential:
    model = network()
    with torch.no_grad():
        for layer in model[::2]:
            layer.weight[layer.weight.abs() < layer.weight.abs().median()] = 0
    return model


def zeros(model: nn.Module) -> int:
    return sum(int((layer.weight == 0).sum()) for layer in model if hasattr(layer, "weight"))


def filled(model: nn.Module, made: nn.Module) -> int:
    """Weights that were zero and aren't in what was made of it."""
    pairs = [(a.weight, b.weight) for a, b in zip(model, made, strict=True) if hasattr(a, "weight")]
    return sum(int(((old == 0) & (new != 0)).sum()) for old, new in pairs)


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if "came pruned" in r.getMessage()]


@pytest.mark.parametrize("name", [*PACKERS, "share_kmeans", "prune_magnitude", "prune_wanda"])
def test_zeros_stay_or_their_loss_is_said(name: str, caplog: pytest.LogCaptureFixture) -> None:
    model = pruned()
    face = tauten.quantize if name in PACKERS else tauten.compress
    packed = face(model, technique=name, data=[X])
    lost = filled(model, packed) / zeros(model)
    assert len(said(caplog)) == (lost > 0.01), f"{lost:.1%} lost"


def test_what_is_advised_keeps_them(caplog: pytest.LogCaptureFixture) -> None:
    model = pruned()
    tauten.quantize(model, 4)
    (sentence,) = said(caplog)
    assert (
        "3 layers came pruned" in sentence and "PruneSparseGPT" in sentence and "8 bits" in sentence
    )
    caplog.clear()
    for kept in (
        tauten.quantize(model, 8),
        tauten.compress(model, technique=tauten.PruneSparseGPT(0.5, bits=4), data=[X]),
    ):
        assert zeros(kept) >= 0.99 * zeros(model) and not said(caplog)


def test_dense_models_hear_nothing_of_zeros(caplog: pytest.LogCaptureFixture) -> None:
    tauten.quantize(network(), 4)
    tauten.compress(pruned(), technique="prune_magnitude", sparsity=0.8)
    assert not said(caplog)


@pytest.mark.parametrize("keep", [False, True])
def test_training_keeps_zeros_or_says_what_does(keep: bool, caplog) -> None:
    model, technique = pruned(), tauten.Distill(steps=3, keep_zeros=keep)
    with caplog.at_level(logging.WARNING, "tauten"):
        made = tauten.compress(model, technique=technique, teacher=network(), data=[X])
    assert (zeros(made) == zeros(model)) == keep
    assert [("keep_zeros=True" in sentence) for sentence in said(caplog)] == [True] * (not keep)
