"""AutoRound wins on its own objective: outputs of a layer, and of a block as a whole."""

from typing import Any

import pytest
import torch
from layer_inputs import layer_inputs
from tiny_models import MODELS, tiny_llama
from torch import nn

import tauten
from tauten.core.errors import InputError
from tauten.core.recipe import Recipe, Step
from tauten.data.calibration import calibration_batches
from tauten.formats.integer import ZERO_KINDS
from tauten.models.batch import CalibrationBatch
from tauten.models.calibration import Calibration
from tauten.models.source import shared_copy
from tauten.models.structure import find_structure
from tauten.models.walk import Walk
from tauten.quantization import RTN, AutoRound
from tauten.search.workspace import calibration_for
from tauten.solvers.block_fit import output_distance
from tauten.solvers.grid import fit_grid
from tauten.solvers.second_order import output_error
from tauten.solvers.sign_rounding import LearnedRounding, sign_step


def tokens(seed: int, count: int = 8) -> list[Any]:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, 256, (count, 4, 24), generator=generator)
    return [CalibrationBatch((), {"input_ids": batch}) for batch in ids]


@pytest.mark.parametrize("bits", [1, 3, 8])
@pytest.mark.parametrize("zero", ZERO_KINDS)
def test_it_starts_at_the_nearest_levels_of_the_grid(bits: int, zero: str) -> None:
    weight = torch.randn(6, 70, generator=torch.Generator().manual_seed(bits))
    grid = fit_grid(weight, bits, 32, zero, "mse")
    rounding = LearnedRounding(weight, bits, 32, grid)
    nearest = RTN(bits, 32, zero, "mse").encode(weight)
    codes, found = rounding.rounded()
    assert (codes != nearest.integer_codes()).float().mean() < 0.01  # ties may fall either way
    torch.testing.assert_close(found[0].float(), grid[0].float(), rtol=2e-3, atol=0)
    packed = tauten.formats.integer.IntegerWeight.from_codes((6, 70), bits, 32, codes, *found)
    torch.testing.assert_close(packed.dequantize(), rounding().detach())


@pytest.mark.parametrize("bits", [2, 4])
@pytest.mark.parametrize("zero", ZERO_KINDS)
def test_alone_it_beats_rounding_on_outputs_and_loses_on_weights(bits: int, zero: str) -> None:
    weight = torch.randn(12, 64, generator=torch.Generator().manual_seed(bits)) * 0.1
    inputs = layer_inputs(64, bits)
    ours = AutoRound(bits, 32, zero).encode(weight, inputs).dequantize()
    nearest = RTN(bits, 32, zero, "mse").encode(weight).dequantize()
    error = output_error(ours - weight, inputs.moment).sum()
    assert error < 0.85 * output_error(nearest - weight, inputs.moment).sum()
    assert (ours - weight).norm() > (nearest - weight).norm()


def test_rows_are_learned_in_chunks_of_which_nothing_depends(monkeypatch: Any) -> None:
    weight = torch.randn(12, 64, generator=torch.Generator().manual_seed(0))
    technique, inputs = AutoRound(3, 32, iterations=10), layer_inputs(64, 1)
    whole = technique.encode(weight, inputs).dequantize()
    monkeypatch.setattr("tauten.solvers.nearest.CHUNK_WEIGHTS", 64 * 5)
    torch.testing.assert_close(technique.encode(weight, inputs).dequantize(), whole)


def test_offsets_stay_within_half_a_step() -> None:
    weight = torch.randn(4, 32)
    rounding = LearnedRounding(weight, 4, 0, fit_grid(weight, 4, 0, "integer", "mse"))
    rounding().sum().backward()
    for _ in range(3):
        sign_step([rounding], 0.4)
    assert rounding.offset.abs().max() == 0.5
    share = rounding.high_share.detach()
    assert float(share.min()) >= 0.5 and float(share.max()) <= 1.5


def block_error(kind: str, recipe: Recipe, data: list[Any]) -> float:
    """Of the first block's outputs, by batches that weren't calibrated on."""
    model = MODELS[kind][0]()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4 if parameter.dim() == 2 else 1)
    structure = find_structure(model)
    walk = Walk(shared_copy(model), structure, recipe, calibration=calibration_for(recipe, data))
    packed = walk.run()
    losses = []
    for batch in tokens(1, 4):
        wanted, found = (states_of(m, structure.blocks[0], batch) for m in (model, packed))
        losses.append(output_distance(found, wanted, None))
    return float(torch.stack(losses).mean())


def states_of(model: nn.Module, name: str, batch: Any) -> torch.Tensor:
    kept: list[Any] = []
    hook = model.get_submodule(name).register_forward_hook(lambda *a: kept.append(a[-1]))
    with torch.no_grad():
        model(*batch.args, **batch.kwargs)
    hook.remove()
    state: torch.Tensor = kept[0][0] if isinstance(kept[0], tuple) else kept[0]
    return state


@pytest.mark.parametrize(("kind", "layers"), [("llama", "model.layers.0.*"), ("gpt2", "*.h.0.*")])
def test_a_block_makes_more_of_what_it_made_than_layers_rounded_alone(
    kind: str, layers: str
) -> None:
    nearest = Recipe((Step(RTN(3, 32, "integer", "mse"), layers),))
    ours = Recipe((Step(AutoRound(3, 32, iterations=60), layers),))
    data = tokens(0, 128)
    assert block_error(kind, ours, data) < 0.9 * block_error(kind, nearest, data)


def test_layers_without_blocks_are_said_to_be_packed_by_themselves() -> None:
    model = nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 32))
    batch = calibration_batches([torch.randn(600, 32)], nn.Identity())
    recipe = Recipe.of(AutoRound(3, 32, iterations=2))
    walk = Walk(model, find_structure(model), recipe, calibration=Calibration(batch))
    walk.run()
    assert all("packed by itself" in record.reason for record in walk.layers)


def test_the_same_seed_gives_the_same_and_blocks_are_said_to_be_fitted() -> None:
    recipe = Recipe((Step(AutoRound(3, 32, iterations=4), "model.layers.*"),))
    walks = [
        Walk(m := tiny_llama(layers=2), find_structure(m), recipe, None, None, calibration)
        for calibration in (calibration_for(recipe, tokens(0)) for _ in range(2))
    ]
    states = [walk.run().state_dict() for walk in walks]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not any("packed by itself" in record.reason for record in walks[0].layers)


@pytest.mark.parametrize(
    "knobs", [{"bits": 0}, {"group_size": -1}, {"zero": "some"}, {"iterations": 0}]
)
def test_bad_knobs_are_refused(knobs: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="autoround: " + next(iter(knobs))):
        AutoRound(**knobs)
