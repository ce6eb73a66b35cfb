"""Recipes from the gentlest to the boldest: what the loop tries, in this order."""

from collections.abc import Sequence
from dataclasses import replace

from torch import nn

from tauten.compression import (
    Distill,
    PruneChannels,
    PruneDepth,
    PruneSparseGPT,
    PruneWidth,
    ShareKMeans,
)
from tauten.core.recipe import Recipe, Step
from tauten.core.technique import Technique, WeightTechnique
from tauten.evaluation.task import is_language_model
from tauten.models.structure import Structure
from tauten.quantization import RTN, Int8, KQuant

QUANTIZATION: tuple[tuple[WeightTechnique, WeightTechnique], ...] = (
    # (inside blocks, outside): embeddings and heads are few and sensitive, so they step down late.
    (Int8(), Int8()),
    (RTN(8, 0, "none"), RTN(8, 0, "none")),
    (RTN(6, 64), RTN(8, 0, "none")),
    (RTN(5, 32), RTN(8, 0, "none")),
    (RTN(4, 32), RTN(8, 0, "none")),
    (RTN(4, 32), RTN(6, 64)),
    (RTN(4, 64), RTN(6, 64)),
    (RTN(4, 64), RTN(4, 64)),
    (RTN(3, 32), RTN(4, 32)),
    (RTN(2, 32), RTN(3, 32)),
)
_SHARE_8 = ShareKMeans(bits=8, book_rows=16, weighted=False)
LEVELS: tuple[WeightTechnique, ...] = (
    # Of all layers, to be mixed. Sharing, pruning and plain groups (RTN) lose more in the same
    # bytes, so they aren't here.
    Int8(),
    KQuant(6),
    KQuant(5),
    KQuant(4),
    KQuant(3),
    KQuant(2),
)
MIDDLE = LEVELS.index(KQuant(4))
SHARING: tuple[tuple[WeightTechnique, WeightTechnique], ...] = (
    # One book a tensor loses language models to a few large weights; passes over data for each
    # trial cost more than the weighing of errors gains.
    (_SHARE_8, _SHARE_8),
    (ShareKMeans(bits=5, book_rows=1, weighted=False), _SHARE_8),
    (ShareKMeans(bits=4, book_rows=1, weighted=False), _SHARE_8),
)
PRUNING: tuple[tuple[WeightTechnique, WeightTechnique], ...] = (
    (PruneSparseGPT(0.5), _SHARE_8),
    (PruneSparseGPT(0.5, bits=4), _SHARE_8),
)
BY_PILLAR = {"quantize": QUANTIZATION, "compress": SHARING}
HEALING = Distill(steps=64)
HEALING_NARROWED = Distill(steps=256, learning_rate=2e-3)  # networks that train in fewer examples
HEALING_ENCODER = Distill("hidden", steps=64)
# Smaller models of plain layers, by what they are; their trials take minutes, as they are trained.
SMALLER: dict[str, tuple[tuple[Technique, ...], ...]] = {
    "decoder": (
        (PruneWidth(0.25), HEALING),
        (PruneDepth(0.1), HEALING),
        (PruneDepth(0.25), HEALING),
    ),
    "encoder": ((PruneDepth(0.25), HEALING_ENCODER), (PruneDepth(0.5), HEALING_ENCODER)),
    "convolutions": (
        (PruneChannels(0.25), HEALING_NARROWED),
        (PruneChannels(0.5), HEALING_NARROWED),
    ),
    "other": (),
}


def ladders(
    model: nn.Module, structure: Structure, pillars: Sequence[str], mixes: bool = False
) -> list[list[Recipe]]:
    """What a run over some pillars tries, a ladder after the other.

    Pruning and smaller architectures take minutes a trial; they are tried where compression is
    all that is asked for.

    Args:
        model: A skeleton.
        structure: Of the model.
        pillars: Some of `quantize` and `compress`.
        mixes: Layers of these recipes will be mixed.
    """
    if mixes and "quantize" in pillars:
        return [[Recipe.of(technique) for technique in LEVELS]]
    found = [ladder(structure, pillar) for pillar in pillars]
    if tuple(pillars) == ("compress",):
        found.append(_in_and_outside(structure, PRUNING))
        found.append(smaller_recipes(model, structure))
    return found


def smaller_recipes(
    model: nn.Module, structure: Structure, packing: Technique | None = None
) -> list[Recipe]:
    """Smaller architectures that are healed, and then perhaps packed; gentlest first.

    Args:
        model: A skeleton.
        structure: Of the model.
        packing: Of all layers of what is left.
    """
    packed = () if packing is None else (packing,)
    return [Recipe.of(*techniques, *packed) for techniques in SMALLER[kind_of(model, structure)]]


def kind_of(model: nn.Module, structure: Structure) -> str:
    """Which smaller architectures there are for a model: a key of `SMALLER`."""
    if is_language_model(model):
        return "decoder"
    if any(isinstance(m, nn.Conv2d) for m in model.modules()):
        return "convolutions"
    is_encoder = hasattr(model, "config") and len(structure.blocks) > 1
    return "encoder" if is_encoder else "other"


def ladder(structure: Structure, pillar: str) -> list[Recipe]:
    """Recipes of a pillar for a model, gentlest first.

    Args:
        structure: Tells which layers lie inside blocks.
        pillar: `quantize` or `compress`.
    """
    return _in_and_outside(structure, BY_PILLAR[pillar])


def _in_and_outside(
    structure: Structure, pairs: Sequence[tuple[WeightTechnique, WeightTechnique]]
) -> list[Recipe]:
    inside = block_pattern(structure)
    recipes = []
    for in_blocks, outside in pairs:
        if not inside or in_blocks == outside:
            recipe = Recipe.of(in_blocks)
        else:
            recipe = Recipe((Step(in_blocks, inside), Step(outside)))
        if recipe not in recipes:
            recipes.append(recipe)
    return recipes


def faster_twin(recipe: Recipe) -> Recipe:
    """The recipe with activations rounded to 8 bits, which takes no byte more and runs faster."""
    steps = (
        replace(step, technique=replace(step.technique, activation="int8"))
        if isinstance(step.technique, RTN)
        else step
        for step in recipe.steps
    )
    return replace(recipe, steps=tuple(steps))


def block_pattern(structure: Structure) -> str:
    """Pattern of all layers inside blocks, such as `model.layers.*`; empty without blocks."""
    if not structure.blocks:
        return ""
    return structure.blocks[0].rpartition(".")[0] + ".*" if "." in structure.blocks[0] else "*"
