"""Steps before packing: reshaped and trained models are saved, loaded, packed and resumed."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tiny_models import byte_tokenizer, tiny_cnn, tiny_llama, tiny_mlp
from torch import Tensor, nn

import tauten
from tauten.core.errors import InputError, NotApplicableError
from tauten.core.recipe import Recipe, Step
from tauten.core.technique import ShapingTechnique, TuningTechnique
from tauten.data.tensors import main_output
from tauten.models.source import fingerprint_tensors, open_source
from tauten.report.facts import shaping_lines
from tauten.report.html import render_html
from tauten.runtime import library
from tauten.runtime.decoder import Decoder
from tauten.search.run import run_recipe

IDS = torch.arange(24).view(1, 24) * 5 % 256


@dataclass(frozen=True)
class FirstOut(ShapingTechnique):
    """Removes the first block."""

    name = "first_out"
    pillar = "compress"

    def reshape(self, model: Any, batches: Sequence[Any]) -> None:
        layers = model.model.layers if hasattr(model, "model") else model[1]
        if len(layers) == 1:
            raise NotApplicableError("only one block is left")
        del layers[0]
        for index, layer in enumerate(layers):
            if hasattr(layer, "self_attn"):
                layer.self_attn.layer_idx = index
        if hasattr(model, "config"):
            model.config.num_hidden_layers = len(layers)


@dataclass(frozen=True)
class Uneven(ShapingTechnique):
    """Narrows the feed-forward of the first block alone, which no configuration can say."""

    name = "uneven"
    pillar = "compress"

    def reshape(self, model: Any, batches: Sequence[Any]) -> None:
        mlp = model.model.layers[0].mlp
        for linear in (mlp.gate_proj, mlp.up_proj):
            linear.weight = nn.Parameter(linear.weight[:64].clone())
            linear.out_features = 64
        mlp.down_proj.weight = nn.Parameter(mlp.down_proj.weight[:, :64].clone())
        mlp.down_proj.in_features = 64


@dataclass(frozen=True)
class Halve(TuningTechnique):
    """Halves the last tensor, in place as optimizers do."""

    name = "halve"
    pillar = "compress"

    def tune(
        self, model: Any, original: nn.Module, batches: Any, folder: Path | None = None
    ) -> None:
        with torch.no_grad():
            list(model.parameters())[-1].mul_(0.5)


def apply(model: Any, recipe: Recipe, out: Path | None = None, data: Any = None) -> Any:
    return run_recipe(open_source(model), recipe, render_html, out, data=data).model


def answer(model: nn.Module, example: Tensor = IDS) -> Tensor:
    with torch.no_grad():
        return main_output(model(example))


def manifest(folder: Path) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((folder / "tauten.json").read_text())
    return read


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Stored in bfloat16, with a tokenizer."""
    tiny_llama().to(torch.bfloat16).save_pretrained(tmp_path / "in")
    byte_tokenizer().save_pretrained(tmp_path / "in")
    return tmp_path / "in"


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_what_a_configuration_can_say_loads_with_transformers_alone(
    folder: Path, tied: bool
) -> None:
    out = folder.with_name("out")
    tiny_llama(tied).to(torch.bfloat16).save_pretrained(folder)
    written = apply(folder, Recipe.of(FirstOut(), FirstOut()), out)
    plain = transformers.AutoModelForCausalLM.from_pretrained(out)
    assert plain.dtype == torch.bfloat16 and plain.config.num_hidden_layers == 1
    assert torch.equal(answer(plain.float()), answer(written))
    assert torch.equal(answer(tauten.load(out)), answer(written))
    assert manifest(out)["structure"] == []
    assert (out / "tokenizer.json").is_file()


def test_marks_that_reading_left_on_a_model_say_nothing_of_its_shape(folder: Path) -> None:
    source, out = open_source(folder), folder.with_name("out")
    build = source.skeleton

    def marked() -> nn.Module:
        model: Any = build()
        model.was_quantized = True
        return model

    source.skeleton = marked
    run_recipe(source, Recipe.of(FirstOut()), render_html, out, load=False)
    assert manifest(out)["structure"] == []


def test_what_no_configuration_can_say_stands_in_the_manifest(folder: Path) -> None:
    out = folder.with_name("out")
    recipe = Recipe.of(FirstOut(), Uneven())
    written = apply(folder, recipe, out)
    assert len(manifest(out)["structure"]) == 2
    loaded = tauten.load(out)
    assert loaded.model.layers[0].mlp.up_proj.out_features == 64
    assert torch.equal(answer(loaded), answer(written))
    assert torch.equal(answer(loaded), answer(apply(folder, recipe)))


@pytest.mark.parametrize("more", [(), (tauten.RTN(8, 32),)], ids=["dense", "packed"])
def test_modules_round_trip_and_stay_as_they_were(tmp_path: Path, more: Any) -> None:
    model, example = tiny_cnn(), torch.randn(3, 1, 12, 12, generator=torch.manual_seed(1))
    before = fingerprint_tensors(model.state_dict())
    recipe = Recipe.of(FirstOut(), *more)
    written = apply(model, recipe, tmp_path / "out")
    in_memory = apply(model, recipe)
    assert fingerprint_tensors(model.state_dict()) == before and len(model[1]) == 3
    assert torch.equal(answer(in_memory, example), answer(written, example))
    loaded = tauten.load(tmp_path / "out", model=tiny_cnn())
    assert torch.equal(answer(loaded, example), answer(written, example))
    with pytest.raises(InputError, match=r"isn't what .* was made from: 0: class"):
        tauten.load(tmp_path / "out", model=tiny_mlp())


def test_packing_names_layers_of_the_reshaped_model(folder: Path) -> None:
    recipe = Recipe((Step(FirstOut()), Step(tauten.RTN(8, 32), "model.layers.1.*")))
    out = folder.with_name("out")
    written = apply(folder, recipe, out)
    packed = {record["name"] for record in manifest(out)["layers"] if "step 2" in record["reason"]}
    assert packed and all(name.startswith("model.layers.1.") for name in packed)
    assert not any(".layers.2." in record["name"] for record in manifest(out)["layers"])
    assert torch.equal(answer(tauten.load(out)), answer(written))


def test_a_reshaped_folder_is_itself_a_source(folder: Path) -> None:
    recipe, out = Recipe.of(Uneven()), folder.with_name("out")
    apply(folder, recipe, out)
    again = folder.with_name("again")
    packed = apply(out, Recipe.of(FirstOut(), tauten.RTN(8, 32)), again)
    assert len(manifest(again)["structure"]) == 0  # the odd layer is gone
    assert torch.equal(answer(tauten.load(again)), answer(packed))
    with pytest.raises(InputError, match=r"first_out needs plain layers, and .* is packed"):
        apply(again, Recipe.of(FirstOut()))


def test_report_says_what_was_removed(folder: Path) -> None:
    out = folder.with_name("out")
    apply(folder, Recipe.of(FirstOut(), tauten.RTN(8, 32)), out)
    (line,) = shaping_lines(manifest(out))
    assert line.startswith("first_out: removed 1 of the 3 in model.layers (0); ")
    assert "removed 1 of the 3 in model.layers (0)" in (out / "report.html").read_text()


def test_a_model_in_training_is_measured_as_it_will_be_used() -> None:
    """Its batch norms don't learn from calibration data."""
    model = tiny_cnn().train()
    before = fingerprint_tensors(model.state_dict())
    images = torch.randn(8, 1, 12, 12, generator=torch.manual_seed(1))
    apply(model, Recipe.of(tauten.PruneDepth(count=1)), data=[images])
    assert fingerprint_tensors(model.state_dict()) == before and model.training


def test_tuning_before_packing_trains_a_copy_of_the_dense_model() -> None:
    model, example = tiny_mlp(), torch.ones(2, 10)
    before = fingerprint_tensors(model.state_dict())
    tuned = apply(model, Recipe.of(Halve()), data=[example])
    assert fingerprint_tensors(model.state_dict()) == before
    assert torch.equal(tuned[1].bias, model[1].bias / 2)
    packed = apply(model, Recipe.of(Halve(), tauten.RTN(8, 0)), data=[example])
    assert torch.equal(packed[1].bias, model[1].bias / 2)
    with pytest.raises(InputError, match="halve needs data"):
        apply(model, Recipe.of(Halve()))


def test_a_killed_run_goes_on_after_the_last_finished_step(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = Recipe.of(FirstOut(), Halve(), Uneven(), tauten.RTN(8, 32))
    whole, killed = folder.with_name("whole"), folder.with_name("killed")
    data = [{"input_ids": IDS}]
    apply(folder, recipe, whole, data)
    steps: list[str] = []
    for kind, call in ((FirstOut, "reshape"), (Halve, "tune"), (Uneven, "reshape")):
        real = getattr(kind, call)

        def counted(self: Any, *given: Any, real: Any = real) -> None:
            steps.append(self.name)
            if len(steps) in (2, 4):
                raise KeyboardInterrupt
            real(self, *given)

        monkeypatch.setattr(kind, call, counted)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            apply(folder, recipe, killed, data)
    apply(folder, recipe, killed, data)
    assert steps == ["first_out", "halve", "halve", "uneven", "uneven"]
    for file in ("model.safetensors", "tauten.json", "recipe.yaml", "config.json"):
        assert (killed / file).read_bytes() == (whole / file).read_bytes(), file


@pytest.mark.skipif(library.load() is None, reason="the native library isn't built")
def test_native_decoder_serves_a_model_with_fewer_layers(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, calls = folder.with_name("out"), []
    apply(folder, Recipe.of(FirstOut(), tauten.RTN(8, 32)), out)
    prefill = Decoder.prefill
    monkeypatch.setattr(Decoder, "prefill", lambda *given: calls.append(1) or prefill(*given))
    loaded: Any = tauten.load(out)
    options = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    native = loaded.generate(IDS + 1, **options)
    assert calls
    assert torch.equal(native, type(loaded).generate(loaded, IDS + 1, **options))


def test_where_a_step_stands_decides_when_it_trains() -> None:
    first, last = Halve(), Halve()
    recipe = Recipe.of(FirstOut(), first, tauten.RTN(8), last)
    assert recipe.shaping == (FirstOut(), first) and recipe.tunings == (last,)
    assert Recipe.of(first).shaping == (first,) and not Recipe.of(first).tunings


def test_senseless_recipes_are_refused() -> None:
    with pytest.raises(InputError, match=r"step 2 \(first_out\) comes after step 1 \(rtn\)"):
        Recipe.of(tauten.RTN(8), FirstOut())
    with pytest.raises(InputError, match=r"step 1 \(first_out\) changes the model as a whole"):
        Recipe((Step(FirstOut(), "model.layers.*"),))
    with pytest.raises(NotApplicableError, match="only one block is left"):
        apply(tiny_llama(layers=1), Recipe.of(FirstOut()))
