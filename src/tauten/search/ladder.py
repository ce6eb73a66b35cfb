"""Recipes from the gentlest to the boldest: what the loop tries, in this order."""

from dataclasses import replace

from tauten.compression import ShareKMeans
from tauten.core.recipe import Recipe, Step
from tauten.core.technique import WeightTechnique
from tauten.models.structure import Structure
from tauten.quantization import RTN, Int8

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
COMPRESSION = (
    (ShareKMeans(bits=8), ShareKMeans(bits=8)),
    (ShareKMeans(bits=5), ShareKMeans(bits=8)),
    (ShareKMeans(bits=4), ShareKMeans(bits=6)),
)
BY_PILLAR = {"quantize": QUANTIZATION, "compress": COMPRESSION}


def ladder(structure: Structure, pillar: str) -> list[Recipe]:
    """Recipes of a pillar for a model, gentlest first.

    Args:
        structure: Tells which layers lie inside blocks.
        pillar: `quantize` or `compress`.
    """
    inside = block_pattern(structure)
    recipes = []
    for in_blocks, outside in BY_PILLAR[pillar]:
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
