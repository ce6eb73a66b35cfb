"""Models with fewer channels, features and heads are saved, loaded and quantized like others."""

import json
from pathlib import Path

import pytest
import torch
import transformers
from pruned_models import output
from tiny_models import MODELS, tiny_bert, tiny_cnn, tiny_llama

import tauten
from tauten import PruneChannels, PruneHeads, PruneWidth
from tauten.core.recipe import Recipe
from tauten.core.technique import ShapingTechnique
from tauten.search.techniques import TECHNIQUES

IMAGES, IDS = MODELS["cnn"][1](), MODELS["llama"][1]()


def structure(folder: Path) -> list[object]:
    found: list[object] = json.loads((folder / "tauten.json").read_text())["structure"]
    return found


@pytest.mark.parametrize("more", [(), (tauten.StaticInt8(),)], ids=["dense", "int8"])
def test_networks_round_trip(tmp_path: Path, more: tuple[tauten.StaticInt8, ...]) -> None:
    recipe = Recipe.of(PruneChannels(0.5, multiple=4), *more)
    made = tauten.compress(tiny_cnn(), technique=recipe, data=[IMAGES], out=tmp_path / "out")
    assert len(structure(tmp_path / "out")) == 1
    loaded = tauten.load(tmp_path / "out", model=tiny_cnn())
    assert torch.equal(output(loaded, IMAGES), output(made, IMAGES))
    assert len(loaded[1][0].conv1.weight) == 8


def test_models_in_training_do_not_learn_from_calibration_data() -> None:
    model = tiny_cnn().train()
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    made = tauten.compress(model, technique=PruneChannels(0.5, multiple=4), data=[IMAGES])
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())
    assert model.training and not made.training


@pytest.mark.parametrize("technique", [PruneWidth(0.5, 16), PruneHeads(0.5)], ids=str)
def test_llamas_load_with_transformers_alone(tmp_path: Path, technique: ShapingTechnique) -> None:
    tiny_llama().save_pretrained(tmp_path / "in")
    made = tauten.compress(tmp_path / "in", technique=technique, out=tmp_path / "out")
    assert structure(tmp_path / "out") == []
    plain = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert torch.equal(output(plain, IDS), output(made, IDS))


@pytest.mark.parametrize(
    ("technique", "steps"), [(PruneWidth(0.5, 16), 0), (PruneHeads(0.25), 1)], ids=str
)
def test_berts_round_trip(tmp_path: Path, technique: ShapingTechnique, steps: int) -> None:
    tiny_bert().save_pretrained(tmp_path / "in")
    made = tauten.compress(tmp_path / "in", technique=technique, out=tmp_path / "out")
    assert len(structure(tmp_path / "out")) == steps
    assert torch.equal(output(tauten.load(tmp_path / "out"), IDS), output(made, IDS))


def test_knobs_are_kept_by_recipes() -> None:
    recipe = Recipe.of(PruneChannels(0.3, "importance", 4), PruneWidth(0.2), PruneHeads(0.5))
    assert Recipe.from_yaml(recipe.to_yaml(), TECHNIQUES) == recipe
