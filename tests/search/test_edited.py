"""A model whose shape was edited is run before it is returned."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from tiny_models import tiny_llama
from torch import nn

import tauten
from tauten.core.technique import ShapingTechnique


@dataclass(frozen=True)
class CutHead(ShapingTechnique):
    """Drops columns of the head, whose input stays as wide as it was."""

    name = "cut_head"
    pillar = "compress"

    def reshape(self, model: nn.Module, batches: Sequence[Any]) -> None:
        model.lm_head = nn.Linear(8, 256)


@dataclass(frozen=True)
class Poison(ShapingTechnique):
    """Puts NaN into a norm."""

    name = "poison"
    pillar = "compress"

    def reshape(self, model: nn.Module, batches: Sequence[Any]) -> None:
        model.model.norm.weight = nn.Parameter(torch.full((64,), torch.nan))


@dataclass(frozen=True)
class CutAndRun(CutHead):
    """Runs the model that it has broken, as what prunes block by block does."""

    name = "cut_and_run"

    def reshape(self, model: nn.Module, batches: Sequence[Any]) -> None:
        super().reshape(model, batches)
        model(IDS)


IDS = torch.arange(64).view(2, 32)


@pytest.mark.parametrize("data", [None, [IDS]])
@pytest.mark.parametrize("technique", [CutHead(), Poison(), CutAndRun()])
def test_a_broken_model_is_never_returned(technique: ShapingTechnique, data: Any, tmp_path) -> None:
    model = tiny_llama(tied=False)
    for out in (None, tmp_path / "out"):
        with pytest.raises(
            tauten.TautenError, match=f"{technique.name} doesn't fit LlamaForCausal"
        ):
            tauten.compress(model, technique=technique, data=data, out=out)
    assert not (tmp_path / "out").exists()


def test_what_could_not_be_run_before_is_not_judged() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    smaller = tauten.compress(model, technique=tauten.PruneMagnitude(0.5))
    assert smaller(torch.ones(1, 4)).shape == (1, 4)
