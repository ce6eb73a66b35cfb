"""Tuned blocks make more like what the original's made, on tokens not seen; codes stay."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import tiny_llama
from torch import nn

import tauten
from tauten.core.errors import InputError, NotApplicableError
from tauten.core.inputs import BlockExamples
from tauten.core.recipe import Recipe, Step
from tauten.models.packing import packed_modules
from tauten.models.source import fingerprint_tensors, open_source
from tauten.report.html import render_html
from tauten.search.run import run_recipe
from tauten.solvers.block_fit import output_distance

LAYERS = "model.layers.*"
RECIPE = Recipe((Step(tauten.RTN(2, 32), LAYERS), Step(tauten.TuneBlocks(rate=0.02))))


def opinionated_llama() -> Any:
    """Of outputs that quantization moves."""
    model = tiny_llama(tied=False, layers=2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4 if parameter.dim() == 2 else 1)
    return model


def tokens(seed: int, count: int = 64) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, 256, (count, 4, 24), generator=generator)
    return [{"input_ids": batch} for batch in ids]


def apply(model: Any, recipe: Recipe, data: Any = None, out: Path | None = None) -> Any:
    return run_recipe(open_source(model), recipe, render_html, out, data=data)


def states(model: Any, data: list[dict[str, Any]]) -> torch.Tensor:
    """Behind the last block, before the norm."""
    kept: list[torch.Tensor] = []
    hook = model.model.norm.register_forward_pre_hook(lambda _, args: kept.append(args[0]))
    with torch.no_grad():
        for batch in data:
            model(**batch)
    hook.remove()
    return torch.cat(kept)


def test_it_helps_on_tokens_that_it_has_not_seen_and_keeps_codes() -> None:
    model = opinionated_llama()
    before = fingerprint_tensors(model.state_dict())
    plain = apply(model, Recipe(RECIPE.steps[:1]))
    tuned = apply(model, RECIPE, tokens(0))
    wanted = states(model, tokens(1, 4))
    distances = [
        float(output_distance(states(result.model, tokens(1, 4)), wanted, None))
        for result in (plain, tuned)
    ]
    assert distances[1] < 0.9 * distances[0]
    assert fingerprint_tensors(model.state_dict()) == before
    pairs = zip(packed_modules(plain.model), packed_modules(tuned.model), strict=True)
    for (_, old), (name, new) in pairs:
        assert torch.equal(old.packed.integer_codes(), new.packed.integer_codes()), name
        assert old.packed.spec() == new.packed.spec()
        assert not torch.equal(old.packed.scale, new.packed.scale)
    for block in (0, 1):
        norm = tuned.model.model.layers[block].input_layernorm.weight
        assert not torch.equal(norm, model.model.layers[block].input_layernorm.weight)
    errors = zip(plain.layers, tuned.layers, strict=True)
    packed = [(a, b) for a, b in errors if a.format.startswith("integer")]
    assert packed and all("tuned by tune_blocks" in b.reason for _, b in packed)
    assert all(a.error != b.error for a, b in packed)


def test_norms_can_be_left_alone() -> None:
    recipe = Recipe((RECIPE.steps[0], Step(tauten.TuneBlocks(norms=False))))
    model = opinionated_llama()
    tuned = apply(model, recipe, tokens(0, 8)).model
    norm = "model.layers.0.input_layernorm.weight"
    assert torch.equal(tuned.state_dict()[norm], model.state_dict()[norm])


def test_blocks_of_its_pattern_only() -> None:
    steps = (RECIPE.steps[0], Step(tauten.TuneBlocks(), "model.layers.1"))
    layers = apply(opinionated_llama(), Recipe(steps), tokens(0, 8)).layers
    tuned = {record.name for record in layers if "tuned by" in record.reason}
    assert tuned and all(name.startswith("model.layers.1.") for name in tuned)


def test_on_disk_and_interrupted_is_bit_equal_to_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where layers correct for those before them, by states of the original model."""
    model = opinionated_llama()
    model.save_pretrained(tmp_path / "model")
    packing = Step(tauten.GPTQ(2, 32, correction=0.5), LAYERS)
    recipe = Recipe((packing, *RECIPE.steps[1:]))
    calls = 0
    tune_block = tauten.TuneBlocks.tune_block

    def killed(self: Any, block: nn.Module, examples: BlockExamples) -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt
        tune_block(self, block, examples)

    monkeypatch.setattr(tauten.TuneBlocks, "tune_block", killed)
    with pytest.raises(KeyboardInterrupt):
        apply(tmp_path / "model", recipe, tokens(0, 8), tmp_path / "out")
    written = apply(tmp_path / "model", recipe, tokens(0, 8), tmp_path / "out").model
    assert calls == 3, "the first block was tuned once"
    in_memory = apply(model, recipe, tokens(0, 8)).model
    loaded = tauten.load(tmp_path / "out")
    for found in (written.state_dict(), loaded.state_dict()):
        for name, tensor in in_memory.state_dict().items():
            assert torch.equal(found[name], tensor), name


def test_without_data_blocks_or_anything_to_tune_it_says_so() -> None:
    with pytest.raises(InputError, match="tune_blocks needs data"):
        apply(opinionated_llama(), RECIPE)
    mlp = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 32))
    with pytest.raises(InputError, match="tune_blocks had no effect"):
        apply(mlp, Recipe((Step(tauten.RTN(2, 32)), RECIPE.steps[1])), [torch.randn(8, 32)])
    codebook = Recipe((Step(tauten.ShareKMeans(bits=3), LAYERS), RECIPE.steps[1]))
    with pytest.raises(InputError, match="tune_blocks had no effect"):
        apply(opinionated_llama(), codebook, tokens(0, 2))
    with pytest.raises(InputError, match="nothing before it packs"):
        Recipe.of(tauten.TuneBlocks(), tauten.RTN(2, 32))
    examples = BlockExamples(lambda *_: torch.zeros(1), [torch.zeros(1)], [None], 0)
    with pytest.raises(NotApplicableError, match="no linear layer"):
        tauten.TuneBlocks().tune_block(nn.Linear(2, 2), examples)


@pytest.mark.parametrize("knobs", [{"rate": 0.0}, {"epochs": 0}, {"epochs": 1.5}])
def test_bad_knobs_are_refused(knobs: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="tune_blocks: " + next(iter(knobs))):
        tauten.TuneBlocks(**knobs)
