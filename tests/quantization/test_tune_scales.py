"""Tuned scales predict more like the original, on text they weren't tuned on; codes stay."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import tiny_llama
from torch import Tensor, nn

import tauten
from tauten.core.errors import InputError, NotApplicableError
from tauten.core.recipe import Recipe, Step
from tauten.data.calibration import calibration_batches
from tauten.formats.integer import IntegerWeight, grouped
from tauten.models.packing import packed_modules
from tauten.models.source import fingerprint_tensors, open_source
from tauten.report.html import render_html
from tauten.runtime.modules import PackedLinear
from tauten.runtime.tunable import TunableLinear
from tauten.search.run import run_recipe
from tauten.solvers.distillation import output_loss

RECIPE = Recipe(
    (Step(tauten.GPTQ(2, 32), "model.layers.*"), Step(tauten.TuneScales(rate=0.02, epochs=4)))
)


class Loud(tauten.KQuant):
    """Its scales are too large by half: far more to gain than chance gives or takes."""

    def encode(self, weight: Tensor, inputs: Any = None) -> Any:
        packed = super().encode(weight, inputs)
        packed.super_scale *= 1.5
        return packed


def opinionated_llama() -> Any:
    """Of predictions that are far from uniform, so that quantization moves them."""
    model = tiny_llama(tied=False)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4 if parameter.dim() == 2 else 1)
    return model


def tokens(seed: int, count: int = 8) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, 256, (count, 4, 24), generator=generator)
    return [{"input_ids": batch} for batch in ids]


def loss(model: nn.Module, original: nn.Module, data: list[dict[str, Any]]) -> float:
    with torch.no_grad():
        found = [output_loss(model(**x), original(**x), None) for x in data]
    return float(torch.stack(found).mean())


def apply(model: Any, recipe: Recipe, data: Any = None, out: Path | None = None) -> Any:
    return run_recipe(open_source(model), recipe, render_html, out, data=data).model


def test_tuning_helps_on_tokens_that_it_has_not_seen_and_keeps_codes() -> None:
    model = opinionated_llama()
    before = fingerprint_tensors(model.state_dict())
    plain = apply(model, Recipe(RECIPE.steps[:1]), tokens(0, 32))
    tuned = apply(model, RECIPE, tokens(0, 32))
    assert loss(tuned, model, tokens(1)) < 0.9 * loss(plain, model, tokens(1))
    assert fingerprint_tensors(model.state_dict()) == before
    pairs = list(zip(packed_modules(plain), packed_modules(tuned), strict=True))
    assert pairs
    for (_, old), (name, new) in pairs:
        assert torch.equal(old.packed.integer_codes(), new.packed.integer_codes()), name
        assert old.packed.spec() == new.packed.spec()
        assert not torch.equal(old.packed.scale, new.packed.scale)
    assert not torch.equal(plain.model.norm.weight, tuned.model.norm.weight)


@pytest.mark.parametrize("zero", ["float", "none"])
def test_super_scales_are_tuned_and_the_integers_below_them_stay(zero: str) -> None:
    model = opinionated_llama()
    first = Step(Loud(2, 32, 64, 4, zero), "model.layers.*")
    plain = apply(model, Recipe((first,)), tokens(0))
    tuning = Step(tauten.TuneScales(rate=0.02, epochs=2, norms=False))
    tuned = apply(model, Recipe((first, tuning)), tokens(0))

    assert loss(tuned, model, tokens(1)) < 0.85 * loss(plain, model, tokens(1))
    for (_, old), (_, new) in zip(packed_modules(plain), packed_modules(tuned), strict=True):
        assert torch.equal(old.packed.integer_codes(), new.packed.integer_codes())
        before, after = old.packed.scales(), new.packed.scales()
        assert torch.equal(before.scale_codes, after.scale_codes)
        assert not torch.equal(before.super_scale, after.super_scale)
        if zero == "float":
            assert torch.equal(before.zero_codes, after.zero_codes)
            assert not torch.equal(before.super_zero, after.super_zero)


def test_norms_can_be_left_alone() -> None:
    recipe = Recipe((RECIPE.steps[0], Step(tauten.TuneScales(norms=False))))
    model = opinionated_llama()
    tuned = apply(model, recipe, tokens(0, 2))
    assert torch.equal(tuned.model.norm.weight, model.model.norm.weight)


def test_on_disk_is_bit_equal_to_in_memory(tmp_path: Path) -> None:
    model = opinionated_llama()
    model.save_pretrained(tmp_path / "model")
    written = apply(tmp_path / "model", RECIPE, tokens(0, 2), tmp_path / "out")
    in_memory = apply(model, RECIPE, tokens(0, 2))
    loaded = tauten.load(tmp_path / "out")
    for found in (written.state_dict(), loaded.state_dict()):
        for name, tensor in in_memory.state_dict().items():
            assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize("zero", ["none", "integer", "float"])
def test_gradients_are_those_of_the_written_out_product(zero: str) -> None:
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(6, 70, generator=generator)
    packed = tauten.RTN(3, 32, zero).encode(weight)
    assert isinstance(packed, IntegerWeight)
    layer = TunableLinear(PackedLinear(packed, torch.randn(6, generator=generator)))
    x = torch.randn(5, 70, generator=generator, requires_grad=True)
    goal = torch.randn(5, 6, generator=generator)
    wanted = [x, layer.grid.change] + ([] if layer.grid.offset is None else [layer.grid.offset])
    found = torch.autograd.grad((layer(x) * goal).sum(), wanted)

    low = packed.dequantize().double()
    change = torch.zeros(6, 3, dtype=torch.float64, requires_grad=True)
    offset = torch.zeros(6, 3, dtype=torch.float64, requires_grad=True)
    scale = packed.scale.double()
    cells = grouped(low, 32)
    if zero == "float":
        assert packed.zero is not None
        base = packed.zero.double()[..., None]
        cells = (cells - base) * change.exp()[..., None] + base
        cells = cells + (offset * scale)[..., None]
    else:
        cells = cells * change.exp()[..., None]
    y = x.double() @ cells.flatten(1)[:, :70].t()
    inputs = [x, change] + ([offset] if zero == "float" else [])
    expected = torch.autograd.grad((y * goal.double()).sum(), inputs)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a.double(), b.double(), rtol=1e-4, atol=1e-4)


def test_a_negative_scale_keeps_its_sign() -> None:
    scale = torch.full((4, 1), -0.1)
    layer = PackedLinear(IntegerWeight.encode(torch.randn(4, 32), 4, 0, scale, None))
    before = layer.weight
    TunableLinear(layer).write_back()
    assert torch.equal(layer.weight, before)


def test_without_data_or_anything_to_tune_it_says_so() -> None:
    with pytest.raises(InputError, match="tune_scales needs data"):
        apply(opinionated_llama(), Recipe((Step(tauten.RTN(2, 32)), RECIPE.steps[1])))
    model = opinionated_llama()
    with pytest.raises(NotApplicableError, match="no linear layer"):
        tauten.TuneScales().tune(model, model, calibration_batches(tokens(0, 1), model))


@pytest.mark.parametrize("knobs", [{"rate": 0.0}, {"epochs": 0}, {"epochs": 1.5}, {"steps": 0}])
def test_bad_knobs_are_refused(knobs: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="tune_scales: " + next(iter(knobs))):
        tauten.TuneScales(**knobs)
