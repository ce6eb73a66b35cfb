"""The correction finds what estimates are wrong by, where that is a matter of kind and depth."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_models import tiny_llama

from tauten.core.goal import Goal
from tauten.core.recipe import Recipe
from tauten.data.calibration import calibration_batches
from tauten.evaluation.divergence import Divergence, batches_within
from tauten.evaluation.task import make_task
from tauten.models.source import open_source, shared_copy
from tauten.models.structure import find_structure
from tauten.quantization import GPTQ
from tauten.search.correction import DEPTHS, correction, groups_of
from tauten.search.loop import Search
from tauten.search.workspace import Workspace

MODEL = tiny_llama(layers=DEPTHS)
STRUCTURE = find_structure(MODEL)
LAYERS = [name for unit in STRUCTURE.units for name in unit.names if "embed" not in name]
RECIPE = replace(Recipe.of(GPTQ(3, 32)), apart=True)


def true_losses(seed: int) -> dict[str, float]:
    generator = torch.Generator().manual_seed(seed)
    return dict(zip(LAYERS, torch.rand(len(LAYERS), generator=generator).tolist(), strict=True))


def test_groups_are_kinds_and_depths() -> None:
    groups = groups_of(LAYERS, STRUCTURE)
    kinds, depths = groups[:-DEPTHS], groups[-DEPTHS:]
    assert sorted(name for group in kinds for name in group) == sorted(LAYERS)
    assert sum(len(group) == DEPTHS for group in kinds) == 7
    assert ["lm_head"] in kinds
    assert all(len({name.split(".")[2] for name in group}) == 1 for group in depths)


def test_a_model_without_kinds_has_no_groups() -> None:
    assert groups_of(["a", "b", "c"], STRUCTURE) == []


def test_factors_of_kind_and_depth_are_found() -> None:
    truth, asked = true_losses(1), list[list[str]]()
    wrong = dict(truth)
    for number, group in enumerate(groups_of(LAYERS, STRUCTURE)):
        wrong |= {name: wrong[name] * (0.5 + 0.15 * number) for name in group}

    def probe(names: Sequence[str]) -> float:
        asked.append(list(names))
        return sum(truth[name] for name in names)

    found = correction(wrong, STRUCTURE, probe)
    assert asked == groups_of(LAYERS, STRUCTURE), "each group once"
    for name, loss in wrong.items():
        assert loss * found[name] == pytest.approx(truth[name], rel=1e-3)


def test_what_is_estimated_or_measured_as_nothing_is_left() -> None:
    losses = true_losses(2) | {LAYERS[0]: 0.0}
    found = correction(losses, STRUCTURE, lambda names: 0.0)
    assert LAYERS[0] not in found
    assert set(found.values()) == {1.0}
    assert correction(losses, STRUCTURE, lambda names: None) == {}


def test_divergence_of_a_group_is_that_of_the_model_with_its_layers(
    tmp_path: Path, sensitive_folder: Path, texts: list[str]
) -> None:
    source = open_source(str(sensitive_folder))
    skeleton = source.skeleton()
    task = make_task(source, skeleton, texts)
    batches = calibration_batches(task.splits.calibration, skeleton)
    workspace = Workspace(tmp_path, source, find_structure(skeleton), {}, batches)
    search = Search(workspace, task, Goal())
    search.evaluator.start()
    candidate = workspace.apply(RECIPE)
    names = ["lm_head", "model.layers.1.mlp.down_proj"]  # the first is tied
    original, packed = source.open(), candidate.source.open()
    mixed = shared_copy(original)
    for name in ("model.embed_tokens", *names):
        weight = packed.get_submodule(name).packed.dequantize()
        mixed.get_submodule(name).weight = torch.nn.Parameter(weight)
    vocabulary = int(original.config.vocab_size)
    divergence = Divergence(original, batches_within(task.splits.development, vocabulary))
    found = search.evaluator.partial_kl(candidate, names)
    assert found == pytest.approx(float(divergence.of(mixed).mean()), rel=0.05)
    assert float(divergence.of(original).mean()) < 0.2 * found
