"""What calibration data doesn't reach is said; what it can't have meant is refused."""

import logging
from typing import Any

import pytest
import torch
from tiny_models import tiny_llama
from torch import nn

import tauten
from tauten.core.errors import InputError
from tauten.core.measurement import LayerRecord
from tauten.core.recipe import Recipe, Step
from tauten.core.technique import Technique
from tauten.models.source import open_source
from tauten.report.html import render_html
from tauten.search.run import run_recipe

CALIBRATED = [
    tauten.GPTQ(4, 16),
    tauten.GPTQ(4, 16, correction="auto"),
    tauten.AWQ(4, 16),
    tauten.AdaRound(4, 16, iterations=2),
    tauten.AutoRound(4, 16, iterations=2),
    tauten.KQuant(4, 16, 0),
    tauten.Codebook(4),
    tauten.SmoothQuant(),
]
many = pytest.mark.parametrize("technique", CALIBRATED, ids=str)


class Detour(nn.Module):
    """Layers that are called, never called, or called with zeros."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.used, self.unused = nn.Linear(32, 32), nn.Linear(32, 32)
        self.after_zeros = nn.Linear(32, 32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.used(x) + self.after_zeros(torch.zeros_like(x))
        return y


def layers(model: nn.Module, recipe: Recipe, data: Any) -> dict[str, LayerRecord]:
    found = run_recipe(open_source(model), recipe, render_html, None, data=data).layers
    return {record.name: record for record in found}


@many
def test_layers_without_inputs_are_rounded_warned_of_and_listed(
    technique: Technique, caplog: pytest.LogCaptureFixture
) -> None:
    found = layers(Detour(), Recipe.of(technique), [torch.randn(300, 32)])
    assert "none of it reached the layer" in found["unused"].reason
    assert "its inputs are all zero" in found["after_zeros"].reason
    assert "without data" not in found["used"].reason
    assert all(record.size_bytes < record.original_bytes for record in found.values())
    warned = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert {m.split(":")[0] for m in warned} >= {"unused", "after_zeros"}
    assert not any(m.startswith("used:") for m in warned)


@many
def test_calibration_without_effect_is_an_error(technique: Technique) -> None:
    recipe = Recipe((Step(technique, "unused,after_zeros"),))
    with pytest.raises(InputError, match=r"calibration had no effect.*reached the layer"):
        layers(Detour(), recipe, [torch.randn(300, 32)])


class Overflowing(nn.Module):
    """Finite weights and inputs, and a second layer that gets infinities and NaN."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(32, 32), nn.Linear(32, 32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.second(self.first(x).log())
        return y


@many
def test_inputs_that_are_not_finite_are_an_error(technique: Technique) -> None:
    with pytest.raises(InputError, match="inputs of second aren't finite"):
        layers(Overflowing(), Recipe.of(technique), [torch.randn(300, 32)])


@many
def test_no_data_is_warned_of_with_the_count_needed(
    technique: Technique, caplog: pytest.LogCaptureFixture
) -> None:
    found = layers(Detour(), Recipe.of(technique), None)
    assert all("without data: none was given" in record.reason for record in found.values())
    assert "3 layers packed without calibration data" in caplog.text
    assert "about 256 tokens" in caplog.text


def test_too_little_data_is_warned_of_with_the_count_needed(
    caplog: pytest.LogCaptureFixture,
) -> None:
    layers(Detour(), Recipe((Step(tauten.GPTQ(4, 16), "used"),)), [torch.randn(255, 32)])
    assert (
        "the layer 'used' only 255: their calibration is partly chance; about 256 w" in caplog.text
    )
    caplog.clear()
    layers(Detour(), Recipe((Step(tauten.GPTQ(4, 16), "used"),)), [torch.randn(256, 32)])
    assert "partly chance" not in caplog.text


def test_embeddings_are_listed_and_what_needs_no_data_is_not() -> None:
    data = [{"input_ids": torch.arange(96).view(4, 24)}]
    model = tiny_llama(tied=False, layers=2)
    found = layers(model, Recipe.of(tauten.GPTQ(4, 16)), data)
    reason = found["model.embed_tokens"].reason
    assert reason.endswith("inputs of Embedding layers aren't observed")
    found = layers(model, Recipe.of(tauten.RTN(4, 16)), data)
    assert not any("without data" in record.reason for record in found.values())
