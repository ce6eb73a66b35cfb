"""What quantize chooses by itself, and that the choice is what is applied."""

import logging
from typing import Any

import pytest
import torch
from tiny_models import tiny_llama, tiny_mlp

import tauten
from tauten.api import quantization_technique
from tauten.core.recipe import Recipe
from tauten.models.packing import packed_modules
from tauten.models.source import open_source
from tauten.search.choice import choose_recipe


def names(recipe: Recipe) -> list[str]:
    return [step.technique.name for step in recipe.steps]


def choose(model: Any = None, bits: int | None = 2, has_data: bool = True, **options: Any) -> Any:
    source = open_source(model or tiny_llama())
    return choose_recipe(source, bits, None, "*", has_data, **options)


def test_bits_data_and_kind_of_model_decide() -> None:
    assert names(choose(bits=None)) == names(choose(bits=8, has_data=False)) == ["int8"]
    assert names(choose(has_data=False)) == ["kquant"]
    assert names(choose(bits=1, has_data=False)) == ["binary"]
    assert names(choose(bits=1)) == ["binary", "tune_scales"]
    assert names(choose()) == ["kquant", "tune_scales"]
    assert names(choose(bits=3)) == ["kquant"]
    assert names(choose(tiny_mlp())) == ["kquant"], "only language models are tuned"


@pytest.mark.parametrize(("group_size", "chosen"), [(64, "kquant"), (0, "gptq"), (48, "gptq")])
def test_a_group_size_that_k_quants_lack_is_gptqs(group_size: int, chosen: str) -> None:
    source = open_source(tiny_mlp())
    recipe = choose_recipe(source, 3, group_size, "*", has_data=True)
    assert names(recipe) == [chosen]
    assert recipe.steps[0].technique.group_size == group_size


def test_too_little_time_or_memory_gives_a_cheaper_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tauten.search.choice.operations_per_s", lambda: 1e12)
    weights = sum(p.numel() for p in tiny_llama().parameters())
    pass_s = 2 * weights * 32768 / 1e12
    assert names(choose(max_time_s=2.9 * pass_s)) == ["rtn"]
    assert names(choose(max_time_s=3.1 * pass_s)) == ["kquant"]
    assert names(choose(max_time_s=7.1 * pass_s)) == ["kquant", "tune_scales"]
    monkeypatch.setattr("tauten.search.choice.available_memory_bytes", lambda: 15 * weights)
    assert names(choose()) == ["kquant"]


def test_quantize_applies_the_choice_and_the_log_says_which(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = tiny_llama()
    data = [torch.randint(0, 256, (4, 20), generator=torch.Generator().manual_seed(0))]
    with caplog.at_level(logging.INFO, "tauten"):
        packed = tauten.quantize(model, bits=2, data=data)
    assert "quantizing by kquant" in caplog.text and "tune_scales" in caplog.text
    weights = [module.packed for _, module in packed_modules(packed)]
    assert weights and all(weight.bits == 2 for weight in weights)
    plain = tauten.quantize(model, bits=2, technique="kquant", data=data)
    assert not torch.equal(packed.model.norm.weight, plain.model.norm.weight)


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(tauten.InputError, match="gptq"):
        tauten.quantize(tiny_mlp(), bits=4, technique="gtpq")


@pytest.mark.parametrize(("name", "own"), [("int8", 8), ("binary", 1), ("ternary", 1.6)])
def test_bits_of_a_technique_that_has_no_other_are_its_own(name: str, own: float) -> None:
    assert quantization_technique(name, None, None) == quantization_technique(name, own, None)
    with pytest.raises(tauten.InputError, match=f"{name} has {own} bits a weight"):
        quantization_technique(name, 4, None)


@pytest.mark.parametrize("bits", [0, 9, 2.5, "three", True])
def test_bits_out_of_range_are_refused(bits: Any) -> None:
    with pytest.raises(tauten.InputError, match=r"bits=.*: expected an integer from 1 to 8"):
        tauten.quantize(tiny_mlp(), bits)


@pytest.mark.parametrize("technique", [5, ["gptq"], tauten.GPTQ])
def test_what_is_no_technique_is_refused(technique: Any) -> None:
    with pytest.raises(tauten.InputError, match=r"technique is .*: expected a name, an instance"):
        tauten.quantize(tiny_mlp(), technique=technique)


def test_a_recipe_quantizes_and_data_that_it_passes_over_is_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model, data = tiny_mlp(), list(torch.randn(300, 10).split(50))
    recipe = tauten.Recipe.of(tauten.RTN(4))
    packed = tauten.quantize(model, technique=recipe, data=data)
    assert "data isn't used: rtn(bits=4) doesn't look at any" in caplog.text
    expected = tauten.quantize(model, technique=tauten.RTN(4))
    assert torch.equal(packed(data[0]), expected(data[0]))


def test_time_that_is_too_short_for_calibration_is_told(caplog: pytest.LogCaptureFixture) -> None:
    data = list(torch.randn(300, 10).split(50))
    tauten.quantize(tiny_mlp(), 4, data=data, max_time_s=1e-9)
    assert "rounded to nearest without data" in caplog.text
    with pytest.raises(tauten.InputError, match="max_time_s=0"):
        tauten.quantize(tiny_mlp(), 4, data=data, max_time_s=0)


def test_data_that_the_model_cant_take_is_named() -> None:
    data = list(torch.randn(300, 9).split(50))
    with pytest.raises(tauten.InputError, match="can't be called with batch 1 of the calibration"):
        tauten.quantize(tiny_mlp(), 4, data=data)
