"""What is said of the share of a model that was changed."""

import logging
from typing import Any

import pytest
import torch
from torch import nn

import tauten
from tauten.core.coverage import changed_sentence, coverage_of


def layer(shape: tuple[int, ...], reason: str, held_by: str, size: int = 1) -> dict[str, Any]:
    return {"shape": shape, "reason": reason, "held_by": held_by, "original_bytes": size}


LAYERS = [
    layer((10, 50), "step 1 of the recipe is for all layers", "Linear"),
    layer((10, 50), "tied to a: stored once", "Embedding", 0),
    layer((10, 30), "kept: no layer of a kind that can be packed holds it", "LSTM"),
    layer((10, 20), "kept: no step of the recipe is for it", "Conv1d"),
]


def test_shares_count_tied_weights_once() -> None:
    found = coverage_of(LAYERS)
    assert (found.share, found.rest) == (0.5, {"LSTM": 0.3, "Conv1d": 0.2})


def test_below_most_the_rest_is_named_by_its_classes() -> None:
    sentence, warns = changed_sentence(LAYERS)
    assert warns and "only 50.0%" in sentence and "LSTM (30.0%), Conv1d (20.0%)" in sentence
    sentence, warns = changed_sentence(LAYERS[:2])
    assert not warns and sentence == "100% of the weights were changed"


class Raw(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight_of_all = nn.Parameter(torch.randn(512, 64))
        self.head = nn.Linear(512, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(x @ self.weight_of_all.t())


@pytest.mark.parametrize("written", [False, True])
def test_every_call_ends_with_it(written: bool, tmp_path, caplog) -> None:
    out = tmp_path / "out" if written else None
    with caplog.at_level(logging.INFO, "tauten"):
        tauten.quantize(Raw().eval(), 8, out=out)
        tauten.quantize(nn.Sequential(nn.Linear(64, 64)).eval(), 8)
    said = {record.levelname: record.getMessage() for record in caplog.records}
    assert "only 11.1% of the weights" in said["WARNING"]
    assert "the rest is held by Raw (88.9%)" in said["WARNING"]
    assert said["INFO"] == "100% of the weights were changed"
    if out is not None:
        assert "held by Raw" in (out / "report.html").read_text()
