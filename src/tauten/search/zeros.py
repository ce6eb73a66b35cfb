"""Share out the zeros of a recipe's pruning among layers, by how much the model minds them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from tauten.core.errors import InputError
from tauten.core.recipe import Recipe, Step
from tauten.core.technique import PruningTechnique, Technique
from tauten.evaluation.sensitivity import Sensitivity, sensitivities
from tauten.models.calibration import CalibrationBatch
from tauten.models.loader import Loader
from tauten.models.packing import matrix_of
from tauten.models.part_tensors import PartTensors
from tauten.models.structure import Structure, packable_modules
from tauten.solvers.allocation import allocate
from tauten.solvers.second_order import output_error

REACH = 0.2  # from the sparsity wanted: further away the estimate of a loss is too rough
LEVELS = 9  # of sparsity that a layer may get


@dataclass(frozen=True)
class _Row:
    """A layer in the table of levels.

    Attributes:
        name: Of the layer.
        kept: Weights left at each level.
        losses: Growth of the model's loss at each level, up to a factor that all layers share.
    """

    name: str
    kept: Tensor
    losses: Tensor


def share_out_zeros(
    recipe: Recipe,
    model: nn.Module,
    structure: Structure,
    loader: Loader | None,
    batches: Sequence[CalibrationBatch],
) -> Recipe:
    """Give each layer a sparsity of its own where a step's allocation is by sensitivity.

    At most as many weights are kept in all as with the same sparsity everywhere. Layers that can't
    be judged, such as embeddings and what is tied to them, keep that sparsity.

    Args:
        recipe: Steps that have `layers` are left as they are.
        model: What is to be packed, with empty tensors where there is a loader.
        structure: Of the model.
        loader: As for `Walk`.
        batches: Calibration data.
    Raises:
        InputError: There is no data to find sensitivities by, or the model makes NaN of it.
    Cost: about five forward passes over the data looked at, and a mask of each layer a level.
    Source: sensitivities as in `evaluation.sensitivity`. OWL (Yin et al. 2023, arXiv:2310.05175)
        and others share zeros out among blocks by heuristics; this minimizes an estimated loss.
    """
    wanted = {index for index, step in enumerate(recipe.steps, 1) if _asks(step)}
    if not wanted:
        return recipe
    if not batches:
        name = recipe.steps[min(wanted) - 1].technique.name
        raise InputError(f"{name}: allocation=sensitivity needs data: pass data=...")
    steps, tensors = list(recipe.steps), PartTensors(model, structure, loader)
    for index, rows in _tables(recipe, wanted, tensors, structure, batches).items():
        step = steps[index - 1]
        steps[index - 1] = replace(step, layers=tuple(_allocated(step.technique, rows)))
    return replace(recipe, steps=tuple(steps))


def _tables(
    recipe: Recipe,
    wanted: set[int],
    tensors: PartTensors,
    structure: Structure,
    batches: Sequence[CalibrationBatch],
) -> dict[int, list[_Row]]:
    """What each layer loses at each level, by the number of its step."""
    tables: dict[int, list[_Row]] = {index: [] for index in wanted}
    model = tensors.model
    step_of = {name: recipe.step_for(name) for name in _judged(model)}
    own = {n: at for n, at in step_of.items() if at is not None and at[0] in wanted}
    names_of: dict[str, list[str]] = {}
    for name in own:
        names_of.setdefault(structure.block_of(name), []).append(name)
    for found in sensitivities(model, structure.blocks, tensors.filled, names_of, batches):
        for name, sensitivity in found.items():
            index, step = own[name]
            assert isinstance(step.technique, PruningTechnique), "only these allocate"
            module = model.get_submodule(name)
            weight = module.weight
            assert isinstance(weight, Tensor)
            matrix = matrix_of(module, tensors.stored(weight).detach()).flatten(1).float()
            tables[index].append(_row(name, step.technique, matrix, sensitivity))
    return tables


def _asks(step: Step) -> bool:
    technique = step.technique
    by_sensitivity = getattr(technique, "allocation", "") == "sensitivity"
    return isinstance(technique, PruningTechnique) and by_sensitivity and not step.layers


def _judged(model: nn.Module) -> list[str]:
    """Layers whose weight stands in no other place."""
    modules = dict(packable_modules(model))
    places: dict[int, int] = {}
    for module in modules.values():
        places[id(module.weight)] = places.get(id(module.weight), 0) + 1
    return [name for name, module in modules.items() if places[id(module.weight)] == 1]


def _levels(sparsity: float) -> list[float]:
    """Sparsities around the one wanted, which is the middle one."""
    reach = min(REACH, sparsity / 2, (1 - sparsity) / 2)
    middle = LEVELS // 2
    return [round(sparsity + reach * (i - middle) / middle, 4) for i in range(LEVELS)]


def _at(technique: Technique, sparsity: float) -> PruningTechnique:
    assert isinstance(technique, PruningTechnique)
    knobs = {**technique.knobs(), "sparsity": sparsity}
    return type(technique)(**knobs)


def estimated_kl(sensitivity: Sensitivity, change: Tensor) -> float:
    """KL that a change (out, in) of a layer's weight may cost, in nats an answer.

    Half of the expected squared move of the log-probabilities.
    """
    return float((sensitivity.fisher * output_error(change, sensitivity.inputs.moment)).sum()) / 2


def _row(name: str, technique: PruningTechnique, weight: Tensor, sensitivity: Sensitivity) -> _Row:
    kept, losses = [], []
    if not bool(sensitivity.fisher.isfinite().all() & sensitivity.inputs.moment.isfinite().all()):
        raise InputError(
            f"{name}: the calibration data gives inputs or gradients that aren't finite; pass "
            "other data, or allocation=uniform"
        )
    for sparsity in _levels(technique.knobs()["sparsity"]):
        mask = _at(technique, sparsity).mask(weight, sensitivity.inputs)
        kept.append(int(mask.sum()))
        losses.append(estimated_kl(sensitivity, weight * ~mask))
    return _Row(name, torch.tensor(kept), torch.tensor(losses, dtype=torch.float64))


def _allocated(technique: Technique, rows: list[_Row]) -> Iterator[tuple[str, Technique]]:
    """The technique of each layer whose sparsity isn't the one wanted."""
    if not rows:
        return
    kept = torch.stack([row.kept for row in rows])
    losses = torch.stack([row.losses for row in rows])
    levels, middle = _levels(technique.knobs()["sparsity"]), LEVELS // 2
    chosen = allocate(kept, losses, int(kept[:, middle].sum())).tolist()
    for row, level in zip(rows, chosen, strict=True):
        if level != middle:
            yield row.name, _at(technique, levels[level])
