"""What every technique promises, on every kind of model."""

import copy

import pytest
import torch
from tiny_models import MODELS
from torch import nn

import tauten
from tauten.core.errors import InputError
from tauten.core.inputs import LayerInputs
from tauten.core.recipe import Recipe
from tauten.core.technique import ShapingTechnique, WeightTechnique
from tauten.data.tensors import main_output
from tauten.models.packing import packed_modules
from tauten.models.source import fingerprint_tensors, open_source
from tauten.report.html import render_html
from tauten.search.run import run_recipe
from tauten.search.techniques import TECHNIQUES

# One row a technique: gentle settings, and the largest error of a model's output they may cause.
TABLE: dict[str, tuple[WeightTechnique, float]] = {
    "rtn": (tauten.RTN(8, 32), 0.02),
    "int8": (tauten.Int8(), 0.04),
    "gptq": (tauten.GPTQ(8, 32), 0.02),
    "awq": (tauten.AWQ(8, 32), 0.02),
    "smoothquant": (tauten.SmoothQuant(), 0.04),
    "binary": (tauten.Binary(32, residual=True), 1.0),
    "ternary": (tauten.Ternary(32, residual=True), 0.5),
    "hqq": (tauten.HQQ(8, 32), 0.02),
    "codebook": (tauten.Codebook(4), 0.2),
    "kquant": (tauten.KQuant(8, 32, 0, 8), 0.02),
    "static_int8": (tauten.StaticInt8(), 0.04),
    "adaround": (tauten.AdaRound(8, 32, iterations=20), 0.02),
    "autoround": (tauten.AutoRound(8, 32, iterations=20), 0.02),
    "share_kmeans": (tauten.ShareKMeans(0.01), 0.04),
    "share_rows": (tauten.ShareRows(share=0.25), 1.2),
    "prune_magnitude": (tauten.PruneMagnitude(0.5), 0.8),
    "prune_wanda": (tauten.PruneWanda(0.5), 0.8),
    "prune_sparsegpt": (tauten.PruneSparseGPT(0.4, bits=8, group_size=32), 0.6),
}


# The same for techniques that reshape: settings, and the models that they are for.
SHAPINGS: dict[str, tuple[ShapingTechnique, set[str]]] = {
    "prune_depth": (tauten.PruneDepth(count=1), {"llama", "gpt2", "bert", "cnn", "attention"}),
    "prune_channels": (tauten.PruneChannels(0.5, multiple=1), {"cnn"}),
    "prune_width": (tauten.PruneWidth(0.5, multiple=1), {"llama", "bert"}),
    "prune_heads": (tauten.PruneHeads(0.5), {"llama", "bert"}),
    "share_layers": (tauten.ShareLayers(count=1), {"llama", "gpt2", "bert", "cnn", "attention"}),
    "share_layers with residuals": (
        tauten.ShareLayers(count=1, rank=4),
        {"llama", "gpt2", "bert", "cnn", "attention"},
    ),
}
# They train packed blocks or whole models; tested in files of their own.
TUNINGS = {"tune_blocks", "tune_scales", "distill"}


def test_every_technique_has_a_row() -> None:
    shapings = {technique.name for technique, _ in SHAPINGS.values()}
    assert set(TABLE) | shapings | TUNINGS == set(TECHNIQUES)


@pytest.fixture(params=TABLE)
def technique(request: pytest.FixtureRequest) -> WeightTechnique:
    return TABLE[request.param][0]


def run(model: nn.Module, example: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return main_output(model(example))


def test_output_is_close_and_input_unchanged(
    model_and_input: tuple[nn.Module, torch.Tensor], technique: WeightTechnique
) -> None:
    model, example = model_and_input
    before, tensors = run(model, example), fingerprint_tensors(model.state_dict())
    kinds = [type(m) for m in model.modules()]
    packed = tauten.quantize(model, technique=technique)
    after = run(packed, example)
    assert after.shape == before.shape and after.dtype == before.dtype
    assert (after - before).norm() <= TABLE[technique.name][1] * before.norm()
    assert not torch.equal(after, before), "packing changed nothing"
    assert fingerprint_tensors(model.state_dict()) == tensors
    assert [type(m) for m in model.modules()] == kinds
    assert torch.equal(run(model, example), before)


def test_packed_model_is_smaller(technique: WeightTechnique) -> None:
    model = MODELS["llama"][0]()
    packed = tauten.quantize(model, technique=technique)
    size = sum(t.nbytes for t in packed.state_dict(keep_vars=True).values())
    assert size < sum(t.nbytes for t in model.state_dict().values()) / 3


def test_same_call_same_result(technique: WeightTechnique) -> None:
    model, example = MODELS["gpt2"][0](), MODELS["gpt2"][1]()
    first, second = (run(tauten.quantize(model, technique=technique), example) for _ in range(2))
    assert torch.equal(first, second)


def test_knobs_are_kept_by_recipes(technique: WeightTechnique) -> None:
    recipe = Recipe.of(technique)
    assert Recipe.from_yaml(recipe.to_yaml(), TECHNIQUES) == recipe


def test_every_knob_of_the_space_works(technique: WeightTechnique) -> None:
    weight = torch.randn(6, 70, generator=torch.manual_seed(2))
    seen = torch.randn(2, 600, 70)
    moment, shift = (seen[0].t() @ seen[0] / 600, seen[1].t() @ seen[0] / 600)
    inputs = LayerInputs(moment, 600, shift)
    for knob, values in technique.space().items():
        errors = []
        for value in values:
            packed = type(technique)(**{**technique.knobs(), knob: value}).encode(weight, inputs)
            errors.append((packed.dequantize() - weight).norm().item())
        assert len(set(errors)) == len(values), f"{knob} has no effect"


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert"])
def test_saved_and_loaded_bit_equal(tmp_path, technique: WeightTechnique, kind: str) -> None:
    build, example = MODELS[kind]
    build().save_pretrained(tmp_path / "in")
    run_recipe(
        open_source(tmp_path / "in"),
        Recipe.of(technique),
        render_html,
        tmp_path / "out",
        load=False,
    )
    in_memory = tauten.quantize(build(), technique=technique)
    loaded = tauten.load(tmp_path / "out")
    assert torch.equal(run(loaded, example()), run(in_memory, example()))


@pytest.mark.parametrize("kind", ["cnn", "mlp", "attention"])
def test_module_saved_and_loaded_bit_equal(tmp_path, technique, kind: str) -> None:
    build, example = MODELS[kind]
    written = tauten.quantize(build(), technique=technique, out=tmp_path / "out")
    other = build()
    for parameter in other.parameters():
        nn.init.constant_(parameter, 0.5)
    loaded = tauten.load(tmp_path / "out", model=other)
    assert torch.equal(run(loaded, example()), run(written, example()))
    in_memory = tauten.quantize(build(), technique=technique)
    assert torch.equal(run(loaded, example()), run(in_memory, example()))


def test_copies_and_state_dicts_round_trip(technique: WeightTechnique) -> None:
    model, example = MODELS["llama"][0](), MODELS["llama"][1]()
    packed = tauten.quantize(model, technique=technique)
    state = {k: v.clone() for k, v in packed.state_dict().items()}
    before = run(packed, example)
    assert torch.equal(run(copy.deepcopy(packed), example), before)
    for _, layer in packed_modules(packed):
        for buffer in layer.packed.buffers():
            buffer.zero_()
    packed.load_state_dict(state)
    assert torch.equal(run(packed, example), before)


def test_tied_weights_stay_tied(technique: WeightTechnique) -> None:
    packed = dict(packed_modules(tauten.quantize(MODELS["llama"][0](), technique=technique)))
    assert packed["model.embed_tokens"].packed is packed["lm_head"].packed


def test_nothing_to_pack_is_an_error(technique: WeightTechnique) -> None:
    with pytest.raises(InputError, match="changed nothing"):
        tauten.quantize(nn.LayerNorm(8), technique=technique)


@pytest.mark.parametrize(
    ("name", "kind"), [(name, kind) for name, row in SHAPINGS.items() for kind in sorted(row[1])]
)
def test_reshaped_model_is_smaller_and_saved_and_loaded_bit_equal(
    tmp_path, name: str, kind: str
) -> None:
    (build, example), recipe = MODELS[kind], Recipe.of(SHAPINGS[name][0])
    assert Recipe.from_yaml(recipe.to_yaml(), TECHNIQUES) == recipe
    model = build()
    before = fingerprint_tensors(model.state_dict())
    written = tauten.compress(
        model, technique=SHAPINGS[name][0], data=[example()], out=tmp_path / "out"
    )
    assert fingerprint_tensors(model.state_dict()) == before
    assert not packed_modules_of(written), "dense layers come out"
    assert count(written) < count(model)
    loaded = tauten.load(tmp_path / "out", model=build())
    in_memory = tauten.compress(model, technique=SHAPINGS[name][0], data=[example()])
    assert torch.equal(run(loaded, example()), run(written, example()))
    assert torch.equal(run(in_memory, example()), run(written, example()))


@pytest.mark.parametrize("name", SHAPINGS)
def test_reshaped_folder_is_packed_and_loaded_bit_equal(tmp_path, name: str) -> None:
    build, example = MODELS["llama"]
    build().save_pretrained(tmp_path / "in")
    recipe = Recipe.of(SHAPINGS[name][0], tauten.RTN(8, 32))
    given = (open_source(tmp_path / "in"), recipe, render_html)
    written = run_recipe(*given, tmp_path / "out", data=[example()]).model
    assert written is not None and packed_modules_of(written)
    assert torch.equal(run(tauten.load(tmp_path / "out"), example()), run(written, example()))


def packed_modules_of(model: nn.Module) -> list[str]:
    return [name for name, _ in packed_modules(model)]


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
