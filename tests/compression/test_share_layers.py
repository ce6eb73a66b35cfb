"""Layer sharing: tied blocks are those that brute force would tie, and are stored once."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import tiny_llama
from torch import nn

import tauten
from tauten.compression.share_layers import output_distance
from tauten.core.errors import InputError, NotApplicableError
from tauten.core.recipe import Recipe
from tauten.models.calibration import CalibrationBatch
from tauten.models.source import open_source, shared_copy
from tauten.report.html import render_html
from tauten.search.run import run_recipe
from tauten.solvers.distillation import output_loss

IDS = torch.randint(0, 256, (4, 24), generator=torch.Generator().manual_seed(0))
BATCH = CalibrationBatch((), {"input_ids": IDS, "use_cache": False})


def opinionated_llama(layers: int = 4) -> Any:
    model = tiny_llama(tied=False, layers=layers)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4 if parameter.dim() == 2 else 1)
    return model


def loss(model: nn.Module, original: nn.Module) -> float:
    with torch.no_grad():
        pair = [m(*BATCH.args, **BATCH.kwargs) for m in (model, original)]
        return float(output_loss(*pair, None))


def sharers(model: Any) -> dict[int, int]:
    """How many blocks share a projection, by the first of them."""
    owners: dict[int, list[int]] = {}
    for index, layer in enumerate(model.model.layers):
        owners.setdefault(id(layer.mlp.up_proj.weight), []).append(index)
    return {group[0]: len(group) for group in owners.values() if len(group) > 1}


def shared(model: nn.Module, **knobs: Any) -> Any:
    model = shared_copy(model)
    tauten.ShareLayers(**knobs).reshape(model, [BATCH])
    return model


def test_ties_the_pair_that_brute_force_ties() -> None:
    original = opinionated_llama()
    losses = {}
    for place in range(4):
        for owner in set(range(4)) - {place}:
            trial = copy.deepcopy(original)
            weights = trial.model.layers[owner].state_dict()
            trial.model.layers[place].load_state_dict(weights)
            losses[place, owner] = loss(trial, original)
    found = shared(original, count=1, candidates=12)
    assert loss(found, original) == pytest.approx(min(losses.values()), rel=1e-5)
    few = shared(original, count=1, candidates=1)
    assert loss(found, original) <= loss(few, original)
    layers = found.model.layers
    assert [layer.self_attn.layer_idx for layer in layers] == [0, 1, 2, 3]
    assert len(sharers(found)) == 1


def test_equal_blocks_are_tied_first_at_no_loss() -> None:
    original = opinionated_llama()
    original.model.layers[3].load_state_dict(original.model.layers[1].state_dict())
    found = shared(original, fraction=0.25)
    assert found.model.layers[3].mlp.up_proj.weight is found.model.layers[1].mlp.up_proj.weight
    assert loss(found, original) < 1e-6


def test_all_blocks_may_end_up_with_the_weights_of_one() -> None:
    found = shared(opinionated_llama(), count=3, candidates=3)
    ((_, members),) = sharers(found).items()
    assert members == 4
    parameters = sum(p.numel() for p in found.model.layers.parameters())
    assert parameters == sum(p.numel() for p in found.model.layers[0].parameters())


def test_shared_tensors_are_stored_once_plain_and_packed(tmp_path: Path) -> None:
    tiny_llama().save_pretrained(tmp_path / "in")
    recipe = tauten.ShareLayers(count=1)
    sizes = {}
    for name, steps in {"shared": [recipe], "packed": [recipe, tauten.RTN(8, 32)]}.items():
        out = tmp_path / name
        source = open_source(tmp_path / "in")
        data = [{"input_ids": IDS}]
        written: Any = run_recipe(source, Recipe.of(*steps), render_html, out, data=data).model
        loaded: Any = tauten.load(out)
        with torch.no_grad():
            assert torch.equal(loaded(IDS).logits, written(IDS).logits)
        sizes[name] = (out / "model.safetensors").stat().st_size
        manifest = json.loads((out / "tauten.json").read_text())
        once = [r for r in manifest["layers"] if r["reason"].endswith("stored once")]
        assert len(once) == 7 + 1  # the linear layers of a block, and the tied head
        assert all(record["size_bytes"] == 0 for record in once)
        stored = sum(record["size_bytes"] for record in manifest["layers"])
        assert stored <= sizes[name] < 1.1 * stored + 5000
    whole = (tmp_path / "in" / "model.safetensors").stat().st_size
    assert sizes["packed"] < 0.4 * sizes["shared"] < 0.4 * 0.75 * whole


def test_distance_is_one_for_a_block_that_does_nothing() -> None:
    given, wanted = [torch.zeros(2, 3)], [torch.ones(2, 3)]
    assert output_distance(given, wanted, given) == pytest.approx(1)
    assert output_distance(given, wanted, wanted) == 0


def test_bad_input_is_refused() -> None:
    with pytest.raises(InputError, match="share_layers: count=-1"):
        tauten.ShareLayers(count=-1)
    with pytest.raises(InputError, match="4 of 4 blocks would leave none"):
        shared(opinionated_llama(), count=4)
    uneven = opinionated_llama(2)
    mlp = uneven.model.layers[0].mlp
    mlp.gate_proj, mlp.up_proj = nn.Linear(64, 80, bias=False), nn.Linear(64, 80, bias=False)
    mlp.down_proj = nn.Linear(80, 64, bias=False)
    with pytest.raises(NotApplicableError, match="no two of the 2 blocks that are left"):
        shared(uneven, count=1)
