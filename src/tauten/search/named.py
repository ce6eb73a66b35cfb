"""Techniques and recipes as users name them, with what is named checked."""

from typing import Any

from tauten.core.errors import InputError
from tauten.core.recipe import Recipe, Step
from tauten.core.technique import Technique
from tauten.search.techniques import TECHNIQUES


def quantization_technique(name: str, bits: int | None, group_size: int | None) -> Technique:
    """A quantization technique by name, with bits and group size where they are given."""
    knobs = {"bits": bits, "group_size": group_size}
    kind = TECHNIQUES.get(name)
    if bits is not None and kind is not None and kind.own_bits is not None:
        if bits != kind.own_bits:
            raise InputError(f"{name} has {kind.own_bits:g} bits a weight: leave bits={bits} out")
        knobs["bits"] = None
    given = {knob: value for knob, value in knobs.items() if value is not None}
    return make_technique(name, "quantize", given)


def compression_recipe(
    technique: str | Technique | Recipe, where: str, knobs: dict[str, Any]
) -> Recipe:
    """The recipe that `compress` is asked for; `knobs` are those of a technique that is named."""
    if isinstance(technique, str):
        return Recipe((Step(make_technique(technique, "compress", knobs), where),))
    if knobs:
        raise InputError("give knobs inside the technique instance, not beside it")
    return recipe_of(technique, where)


def recipe_of(technique: Any, where: str) -> Recipe:
    """The recipe of one technique, or the recipe that was given."""
    if isinstance(technique, Recipe):
        if where != "*":
            raise InputError("give `where` inside the recipe's steps, not beside it")
        return technique
    if not isinstance(technique, Technique):
        got = f"the class {technique.__name__}" if isinstance(technique, type) else repr(technique)
        expected = "a name, an instance such as tauten.RTN(4), or a tauten.Recipe"
        raise InputError(f"technique is {got}: expected {expected}")
    return Recipe((Step(technique, where),))


def make_technique(name: str, pillar: str, knobs: dict[str, Any]) -> Technique:
    """A technique by name with its knobs checked."""
    known = [n for n, kind in TECHNIQUES.items() if kind.pillar == pillar]
    if name not in known:
        raise InputError(f"technique {name!r}: {pillar} has {', '.join(known)}")
    recipe = Recipe.from_dict({"steps": [{"technique": name, **knobs}]}, TECHNIQUES)
    return recipe.steps[0].technique
