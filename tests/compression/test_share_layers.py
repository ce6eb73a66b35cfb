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
from tauten.compression.share_layers import output_distance, worth_measuring
from tauten.core.errors import InputError, NotApplicableError
from tauten.core.recipe import Recipe
from tauten.models.calibration import CalibrationBatch
from tauten.models.low_rank_residual import LowRankResidual
from tauten.models.source import open_source, shared_copy
from tauten.models.trainable import scales_and_norms
from tauten.report.html import render_html
from tauten.runtime.modules import PackedLinear
from tauten.search.run import run_recipe
from tauten.solvers.distillation import output_loss
from tauten.solvers.low_rank import DAMPING

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


def output_of(inputs: torch.Tensor, matrix: torch.Tensor, rank: int) -> torch.Tensor:
    """The matrix of a rank whose outputs are nearest on these inputs (tokens, in), by textbook."""
    moment = inputs.t() @ inputs / len(inputs)
    moment.diagonal().add_(DAMPING * moment.diagonal().mean())
    root = torch.linalg.cholesky(moment.double())
    u, s, v = torch.linalg.svd(matrix.double() @ root, full_matrices=False)
    truncated = (u[:, :rank] * s[:rank]) @ v[:rank]
    return (truncated @ torch.linalg.inv(root)).float()


def nearly_tied_by_hand(original: Any, place: int, owner: int, rank: int) -> Any:
    """The model with dense weights W + U V at a place, from inputs that plain hooks have seen."""
    trial = copy.deepcopy(original)
    mine, theirs = trial.model.layers[place], original.model.layers[owner]
    seen: dict[str, torch.Tensor] = {}
    layers = {name: m for name, m in mine.named_modules() if isinstance(m, nn.Linear)}
    hooks = [
        layer.register_forward_pre_hook(lambda _, x, name=name: seen.update({name: x[0]}))
        for name, layer in layers.items()
    ]
    with torch.no_grad():
        trial(*BATCH.args, **BATCH.kwargs)
        for name, layer in layers.items():
            shared = theirs.get_submodule(name).weight
            residual = output_of(seen[name].flatten(0, 1), layer.weight - shared, rank)
            layer.weight.copy_(shared + residual)
    for hook in hooks:
        hook.remove()
    return trial


def test_residuals_and_pair_are_those_of_brute_force() -> None:
    original = opinionated_llama()
    for index, layer in enumerate(original.model.layers):
        layer.input_layernorm.weight.data.add_(0.1 * index)
    trials = {
        (place, owner): nearly_tied_by_hand(original, place, owner, 6)
        for place in range(4)
        for owner in set(range(4)) - {place}
    }
    losses = {pair: loss(trial, original) for pair, trial in trials.items()}
    place, owner = min(losses, key=lambda pair: losses[pair])
    found = shared(original, count=1, candidates=12, rank=6)
    assert loss(found, original) == pytest.approx(losses[place, owner], rel=1e-3)
    mine, theirs = found.model.layers[place], found.model.layers[owner]
    assert mine.mlp.down_proj.shared.weight is theirs.mlp.down_proj.weight
    kept, by_hand = original.model.layers[place], trials[place, owner].model.layers[place]
    assert torch.equal(mine.input_layernorm.weight, kept.input_layernorm.weight)
    assert torch.allclose(mine.mlp.down_proj.weight, by_hand.mlp.down_proj.weight, atol=1e-4)
    assert loss(found, original) < loss(shared(original, count=1, candidates=12), original)


def test_a_layer_keeps_its_weight_where_a_residual_would_be_no_smaller() -> None:
    found = shared(opinionated_llama(), count=1, rank=22)  # 22 * (32 + 64) > 32 * 64
    place = next(layer for layer in found.model.layers if is_residual(layer.mlp.up_proj))
    assert not is_residual(place.self_attn.k_proj) and is_residual(place.self_attn.q_proj)
    with pytest.raises(InputError, match="rank=39: no residual would be smaller"):
        shared(opinionated_llama(), count=1, rank=39)  # 39 * (64 + 96) > 64 * 96


def is_residual(layer: nn.Module) -> bool:
    return isinstance(layer, LowRankResidual)


def held(layer: Any) -> Any:
    """The weight of a linear layer, dense or packed."""
    return layer.packed if isinstance(layer, PackedLinear) else layer.weight


def residual_and_owner(model: Any) -> tuple[Any, Any]:
    """One layer of the tied block, and of the block whose weights it has."""
    layers = [layer.mlp.up_proj for layer in model.model.layers]
    (place,) = (layer for layer in layers if is_residual(layer))
    plain = [layer for layer in layers if not is_residual(layer)]
    (owner,) = (layer for layer in plain if held(layer) is held(place.shared))
    return place, owner


def test_residuals_are_healed_then_stay_float_beside_a_weight_that_is_packed_once(
    tmp_path: Path,
) -> None:
    opinionated_llama().save_pretrained(tmp_path / "in")
    share, heal = tauten.ShareLayers(count=1, rank=4), tauten.Distill(steps=20, learning_rate=3e-4)
    models: dict[str, Any] = {}
    steps = {"shared": [share], "healed": [share, heal], "packed": [share, tauten.RTN(8, 32)]}
    for name, recipe in steps.items():
        source, data = open_source(tmp_path / "in"), [{"input_ids": IDS}]
        out = tmp_path / name
        written: Any = run_recipe(source, Recipe.of(*recipe), render_html, out, data=data).model
        models[name] = tauten.load(out)
        with torch.no_grad():
            assert torch.equal(models[name](IDS).logits, written(IDS).logits)
    before, _ = residual_and_owner(models["shared"])
    after, _ = residual_and_owner(models["healed"])
    for key in ("up", "down", "weight"):
        assert not torch.equal(getattr(before, key), getattr(after, key))
    assert not torch.equal(before.shared.weight, after.shared.weight)
    original: Any = opinionated_llama()
    assert loss(models["healed"], original) < 0.8 * loss(models["shared"], original)
    packed, _ = residual_and_owner(models["packed"])
    assert isinstance(packed.shared, PackedLinear) and torch.equal(packed.up, before.up)
    assert loss(models["packed"], models["shared"]) < 0.01
    manifest = json.loads((tmp_path / "packed" / "tauten.json").read_text())
    records = {r["name"]: r["reason"] for r in manifest["layers"]}
    assert sum(reason.startswith("kept") for reason in records.values()) == 7 * 2


@pytest.mark.parametrize("rank", [0, 4])
def test_tuned_scales_and_norms_are_those_that_both_places_were_trained_with(rank: int) -> None:
    original = opinionated_llama()
    model = tauten.quantize(shared(original, count=1, rank=rank), technique=tauten.RTN(2, 32))
    before = loss(model, original)
    with scales_and_norms(model) as trained:
        assert len({id(tensor) for tensor in trained.values()}) == len(trained)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for tensor in trained.values():
                tensor.copy_(torch.randn(tensor.shape, generator=generator) / 10)
        during = loss(model, original)
    assert loss(model, original) == pytest.approx(during, rel=1e-4)
    assert abs(during - before) > 0.01 * before
    norms = {id(layer.input_layernorm.weight) for layer in model.model.layers}
    assert len(norms) == (4 if rank else 3)


@pytest.mark.parametrize("rank", [0, 4])
def test_shared_layers_are_not_cut_one_by_one(rank: int) -> None:
    model = shared(opinionated_llama(), count=1, rank=rank)
    for technique in (tauten.PruneWidth(0.5), tauten.PruneHeads(0.5)):
        with pytest.raises(NotApplicableError, match="prune before layers are shared"):
            technique.reshape(model, [BATCH])


def test_distance_is_of_directions() -> None:
    wanted = [torch.tensor([[[3.0, 0], [0, 1e-3]]])]
    assert output_distance(wanted, [torch.tensor([[[7.0, 0], [0, 2]]])]) == pytest.approx(0)
    assert output_distance(wanted, [torch.tensor([[[1.0, 0], [1, 0]]])]) == pytest.approx(0.5)


def test_every_place_is_measured_before_any_is_measured_twice() -> None:
    nearest = [(1, 0), (1, 2), (1, 3), (2, 0), (0, 3), (2, 1)]
    assert worth_measuring(nearest, 5) == [(1, 0), (2, 0), (0, 3), (1, 2), (2, 1)]


def test_bad_input_is_refused() -> None:
    with pytest.raises(InputError, match="share_layers: count=-1"):
        tauten.ShareLayers(count=-1)
    with pytest.raises(InputError, match="share_layers: rank=-1"):
        tauten.ShareLayers(rank=-1)
    with pytest.raises(InputError, match="4 of 4 blocks would leave none"):
        shared(opinionated_llama(), count=4)
    uneven = opinionated_llama(2)
    mlp = uneven.model.layers[0].mlp
    mlp.gate_proj, mlp.up_proj = nn.Linear(64, 80, bias=False), nn.Linear(64, 80, bias=False)
    mlp.down_proj = nn.Linear(80, 64, bias=False)
    with pytest.raises(NotApplicableError, match="no two of the 2 blocks that are left"):
        shared(uneven, count=1)
