"""Under a latency goal, formats slower than the unpacked layer drop out before they are tried."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, nn

from tauten.core.journal import Journal
from tauten.core.progress import track
from tauten.core.recipe import Recipe, Step
from tauten.core.technique import WeightTechnique
from tauten.evaluation.formats import (
    FormatTime,
    call_overhead,
    encode,
    layer_name,
    time_packed,
)
from tauten.formats.packed import PackedWeight
from tauten.models.decoding import decoder_for
from tauten.models.packing import packed_layer, replace_modules
from tauten.models.source import shared_copy
from tauten.models.structure import Structure, Unit, packable_modules
from tauten.search.ladder import faster_twin
from tauten.search.techniques import TECHNIQUES
from tauten.search.workspace import recipe_id

Seconds = tuple[float, float]  # unpacked, packed


@dataclass(frozen=True)
class Revert:
    """A format that a layer doesn't take, because it is slower there than no format at all.

    Attributes:
        time: Of the layers of a unit, together.
        instead: What they take, `unpacked` or a faster format.
    """

    time: FormatTime
    instead: str

    def facts(self) -> dict[str, Any]:
        """Plain data for the journal and `timing.json`."""
        return {**asdict(self.time), "instead": self.instead}


class FormatGuard:
    """Replaces recipes by ones that no unit of a model is slower by.

    A decision is journaled with its figures: a resumed run decides alike.

    Args:
        model: The original, in memory.
        structure: Of the model.
        inputs: What layers are given in one token or call, by name; see `layer_inputs`.
        journal: Of the run.
    """

    def __init__(
        self, model: nn.Module, structure: Structure, inputs: dict[str, Tensor], journal: Journal
    ):
        self._model, self._structure, self._inputs = model, structure, inputs
        self._journal = journal
        self._modules = dict(packable_modules(model))
        self._times: dict[tuple[str, str], Seconds] = {}  # by kind of layer and technique
        self._overheads: dict[str, float] = {}
        self.reverts: list[dict[str, Any]] = []

    def fast(self, recipes: Iterable[Recipe]) -> list[Recipe]:
        """Recipes without their slow formats; one that nothing is left of is left out."""
        chosen = list(recipes)
        made = [self._decided(recipe) for recipe in track(chosen, "timing formats", len(chosen))]
        kept = [recipe for recipe in made if recipe.steps]
        return list(dict.fromkeys(kept))

    def _decided(self, recipe: Recipe) -> Recipe:
        known = self._journal.find("formats", of=recipe_id(recipe))
        if known is None:
            made, reverts = self._decide(recipe)
            known = {"recipe": made.to_dict(), "reverts": [revert.facts() for revert in reverts]}
            self._journal.add("formats", of=recipe_id(recipe), **known)
        self.reverts += [fact for fact in known["reverts"] if fact not in self.reverts]
        return Recipe.from_dict(known["recipe"], TECHNIQUES)

    def _decide(self, recipe: Recipe) -> tuple[Recipe, list[Revert]]:
        """A recipe without slow formats, and what was reverted."""
        packed = self._packed(recipe)
        calls = not self._is_decoded(recipe, packed)
        technique_of, reverts = self._assign(recipe, packed, calls)
        if not calls and None in technique_of.values():
            # A layer left unpacked takes the model out of the native decoder: calls count again.
            technique_of, reverts = self._assign(recipe, packed, True)
        made = replace(recipe, steps=self._steps(technique_of)) if reverts else recipe
        return made, reverts

    def _packed(self, recipe: Recipe) -> dict[tuple[str, str], PackedWeight | None]:
        """One layer of each kind as each technique of a recipe packs it."""
        made: dict[tuple[str, str], PackedWeight | None] = {}
        for name, module in self._modules.items():
            technique = _technique(recipe, name)
            if technique is not None:
                key = (layer_name(module), str(technique))
                if key not in made:
                    made[key] = encode(module, technique)
        return made

    def _is_decoded(
        self, recipe: Recipe, packed: dict[tuple[str, str], PackedWeight | None]
    ) -> bool:
        """Whether the native decoder would compute the model: it calls no layer."""
        model, new = shared_copy(self._model), {}
        for name, module in packable_modules(model):
            technique = _technique(recipe, name)
            weight = packed.get((layer_name(module), str(technique)))
            if technique is not None and weight is not None:
                new[module] = packed_layer(module, weight, technique.activation_dtype)
        replace_modules(model, new)
        return decoder_for(model) is not None

    def _assign(
        self, recipe: Recipe, packed: dict[tuple[str, str], PackedWeight | None], calls: bool
    ) -> tuple[dict[str, WeightTechnique | None], list[Revert]]:
        """The technique of each layer, None for unpacked, and the units that were reverted."""
        technique_of: dict[str, WeightTechnique | None] = {}
        reverts: dict[FormatTime, Revert] = {}
        faster = False
        for unit in self._structure.units:
            wanted = _technique(recipe, unit.names[0])
            taken, slow = wanted, None
            for technique in () if wanted is None else _alternatives(wanted):
                time = self._time(unit, technique, packed, calls)
                if time is None or time.ratio <= 1:
                    taken, faster = technique, faster or time is not None
                    break
                slow, taken = slow or time, None
            if slow is not None:
                reverts[slow] = Revert(slow, str(taken or "unpacked"))
            technique_of |= dict.fromkeys(unit.names, taken)
        if reverts and not faster:  # then packed embeddings alone gain no time either
            technique_of = dict.fromkeys(technique_of)
        return technique_of, list(reverts.values())

    def _time(
        self,
        unit: Unit,
        technique: WeightTechnique,
        packed: dict[tuple[str, str], PackedWeight | None],
        calls: bool,
    ) -> FormatTime | None:
        """Of all layers of a unit together; None where none of them is packed or called."""
        names = [name for name in unit.names if name in self._inputs]
        unpacked_s = packed_s = 0.0
        for name in names:
            module, x = self._modules[name], self._inputs[name]
            key = (f"{module!r} {tuple(x.shape)}", str(technique))
            weight = packed.get((layer_name(module), str(technique)))
            if key not in self._times:
                weight = weight or encode(module, technique)
                if weight is None:
                    return None
                activation = technique.activation_dtype
                self._times[key] = time_packed(module, weight, activation, x)
            unpacked, in_format = self._times[key]
            unpacked_s += unpacked
            packed_s += in_format if calls else max(in_format - self._overhead(technique), 0.0)
        label = " + ".join(layer_name(self._modules[name]) for name in names)
        return FormatTime(label, str(technique), unpacked_s, packed_s) if names else None

    def _overhead(self, technique: WeightTechnique) -> float:
        if str(technique) not in self._overheads:
            self._overheads[str(technique)] = call_overhead(technique)
        return self._overheads[str(technique)]

    def _steps(self, technique_of: dict[str, WeightTechnique | None]) -> tuple[Step, ...]:
        """Steps that give each layer its technique."""
        steps = []
        for technique in dict.fromkeys(technique_of.values()):
            if technique is not None:
                own = [name for name, other in technique_of.items() if other == technique]
                others = [name for name, other in technique_of.items() if other != technique]
                steps.append(Step(technique, ", ".join(self._patterns(own, others))))
        return tuple(steps)

    def _patterns(self, names: list[str], others: list[str]) -> list[str]:
        """Patterns that match `names`, across blocks where that matches none of `others`."""
        patterns = []
        for name in names:
            block = self._structure.block_of(name)
            pattern = f"{block[: block.rfind('.') + 1]}*{name[len(block) :]}" if block else name
            free = not any(fnmatchcase(other, pattern) for other in others)
            patterns.append(pattern if free else name)
        return list(dict.fromkeys(patterns))


def _technique(recipe: Recipe, name: str) -> WeightTechnique | None:
    found = recipe.step_for(name)
    if found is None:
        return None
    technique = found[1].technique
    assert isinstance(technique, WeightTechnique), "other techniques don't pack layers"
    return technique


def _alternatives(technique: WeightTechnique) -> list[WeightTechnique]:
    """A technique, and its twin that rounds activations if it has one."""
    twin = faster_twin(Recipe.of(technique)).steps[0].technique
    assert isinstance(twin, WeightTechnique)
    return [technique] if twin == technique else [technique, twin]
