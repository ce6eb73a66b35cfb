"""An ordered list of techniques, each with the layers it is for."""

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from fnmatch import fnmatchcase
from typing import Any

import yaml
from typing_extensions import NotRequired, TypedDict

from tauten.core.description import Count, checked, exact, parse_yaml
from tauten.core.errors import InputError
from tauten.core.technique import (
    BlockTuning,
    ShapingTechnique,
    Technique,
    TuningTechnique,
    WeightTechnique,
)

VERSION = 1
FLAGS = ("entropy_coding", "apart")
MOST_PATTERNS = 2  # of a step that are read out; mixes of levels name each of their layers


@dataclass(frozen=True)
class Step:
    """A technique and the layers it is for.

    Attributes:
        where: Pattern of module names, with * and ?; several are separated by commas.
        layers: By name of a layer the same technique with the knobs that it takes there.
    """

    technique: Technique
    where: str = "*"
    layers: tuple[tuple[str, Technique], ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.where, str):
            raise InputError(f"where={self.where!r}: expected a pattern of names, such as '*mlp*'")

    @property
    def place(self) -> str:
        """The layers it is for, in few words."""
        count = self.where.count(",") + 1
        return self.where if count <= MOST_PATTERNS else f"{count} layers"

    def __str__(self) -> str:
        return str(self.technique) if self.where == "*" else f"{self.technique} on {self.place}"

    def matches(self, name: str) -> bool:
        """Whether it is for the layer of that name."""
        return any(fnmatchcase(name, pattern.strip()) for pattern in self.where.split(","))

    def at(self, name: str) -> "Step":
        """The step as it is for one layer."""
        return Step(dict(self.layers).get(name, self.technique), self.where)

    def to_dict(self) -> dict[str, Any]:
        """Plain data that a recipe holds; of `layers` the knobs that differ."""
        knobs = self.technique.knobs()
        own = {
            name: {key: value for key, value in other.knobs().items() if value != knobs[key]}
            for name, other in self.layers
        }
        layers = {"layers": own} if own else {}
        return {"technique": self.technique.name, "where": self.where, **knobs, **layers}


@exact
@dataclass(frozen=True)
class DataSplit:
    """How a run dealt out its data: techniques looked at the calibration part alone.

    Attributes:
        seed: Of the run.
        max_tokens: Of a part, for text.
    """

    seed: Count
    max_tokens: Count


class _StepFields(TypedDict):
    """A step in a file; its other fields are knobs."""

    technique: str
    where: NotRequired[str]
    layers: NotRequired[dict[str, dict[str, Any]]]


@exact
class _Fields(TypedDict):
    """A recipe in a file."""

    tauten: NotRequired[int]
    entropy_coding: NotRequired[bool]
    apart: NotRequired[bool]
    split: NotRequired[DataSplit | None]
    steps: list[Any]


@dataclass(frozen=True)
class Recipe:
    """What is done to a model, in order.

    Steps that shape come first, and steps that tune may stand between them: `shaping`. Then all
    weights are packed; the first step whose pattern matches a layer's name, in the shaped model,
    decides how. Steps that tune blocks, those that their pattern matches, come after each block is
    packed: `block_tunings`. Steps that tune after a packing one come once all is packed: `tunings`.

    Attributes:
        entropy_coding: Also code what is written losslessly into fewer bytes; a loaded model is
            the same.
        apart: Techniques look at what layers see in the original model, rather than behind the
            packed blocks before them. It loses a little more, but no layer hangs on how others are
            packed, so that layers of several recipes can be mixed.
        split: How data is dealt out before techniques look at it; None where they see all of it.
    """

    steps: tuple[Step, ...]
    entropy_coding: bool = False
    apart: bool = False
    split: DataSplit | None = None

    def __post_init__(self) -> None:
        """Raise InputError for an order or a pattern that makes no sense."""
        packing = ""
        for index, step in enumerate(self.steps, 1):
            name = f"step {index} ({step.technique.name})"
            if isinstance(step.technique, WeightTechnique):
                packing = packing or name
            elif isinstance(step.technique, BlockTuning):
                if not packing:
                    raise InputError(
                        f"recipe: {name} tunes packed blocks, and nothing before it packs; put "
                        "it after a step that does"
                    )
            elif step.where != "*":
                raise InputError(
                    f"recipe: {name} changes the model as a whole, so where={step.where!r} "
                    "has no meaning; leave it out"
                )
            elif isinstance(step.technique, ShapingTechnique) and packing:
                raise InputError(
                    f"recipe: {name} comes after {packing}, and packed weights can't be "
                    "reshaped; put it first"
                )

    @property
    def shaping(self) -> tuple[Technique, ...]:
        """Techniques that change or train the dense model, in order, before the first packs."""
        techniques = (step.technique for step in self.steps)
        return tuple(itertools.takewhile(lambda t: not isinstance(t, WeightTechnique), techniques))

    @property
    def is_level(self) -> bool:
        """Whether it packs each layer by itself, and all alike, so that its layers can be mixed."""
        alone = all(step.technique.packs_alone and not step.layers for step in self.steps)
        blind = not any(step.technique.looks_at_inputs for step in self.steps)
        return bool(self.steps) and alone and (self.apart or blind)

    @property
    def looks_at_data(self) -> bool:
        """Whether data that it is applied with makes a difference."""
        techniques = [step.technique for step in self.steps]
        blind = all(isinstance(t, WeightTechnique) and not t.looks_at_inputs for t in techniques)
        shared = any(getattr(t, "allocation", "") == "sensitivity" for t in techniques)
        return shared or not blind

    @classmethod
    def of(cls, *techniques: Technique, entropy_coding: bool = False) -> "Recipe":
        """Each technique on every layer."""
        return cls(tuple(Step(technique) for technique in techniques), entropy_coding)

    @property
    def cautions(self) -> list[str]:
        """What its techniques say must be known before the result is used, each once."""
        techniques = [step.technique for step in self.steps]
        return list(dict.fromkeys(f"{t.name}: {t.caution}" for t in techniques if t.caution))

    def step_for(self, name: str) -> tuple[int, Step] | None:
        """Index (from 1) and step for a layer, None if no pattern matches."""
        for index, step in enumerate(self.steps, 1):
            if isinstance(step.technique, WeightTechnique) and step.matches(name):
                return index, step.at(name)
        return None

    @property
    def tunings(self) -> tuple[TuningTechnique, ...]:
        """Techniques that train the packed model, in order."""
        found = (step.technique for step in self.steps[len(self.shaping) :])
        return tuple(t for t in found if isinstance(t, TuningTechnique))

    @property
    def block_tunings(self) -> tuple[BlockTuning, ...]:
        """Techniques that train each packed block, in order."""
        found = (step.technique for step in self.steps)
        return tuple(t for t in found if isinstance(t, BlockTuning))

    def to_dict(self) -> dict[str, Any]:
        """Plain data that `from_dict` reads back."""
        steps = [step.to_dict() for step in self.steps]
        flags = {name: True for name in FLAGS if getattr(self, name)}
        split = {"split": asdict(self.split)} if self.split else {}
        return {"tauten": VERSION, **flags, **split, "steps": steps}

    @classmethod
    def from_dict(cls, data: Any, known: Mapping[str, type[Technique]]) -> "Recipe":
        """Read what `to_dict` wrote.

        Args:
            known: Techniques by name.
        Raises:
            InputError: A field is missing, unknown or out of range; the message names it.
        """
        if isinstance(data, dict) and data.get("tauten", VERSION) != VERSION:
            raise InputError(f"recipe: version {data['tauten']!r}; this Tauten reads {VERSION}")
        found: _Fields = _checked(_Fields, data, "recipe")
        split = found.get("split")
        steps = tuple(_step(raw, i, known) for i, raw in enumerate(data["steps"], 1))
        return cls(steps, found.get("entropy_coding", False), found.get("apart", False), split)

    def to_yaml(self) -> str:
        """The recipe as `recipe.yaml` holds it."""
        return yaml.safe_dump(self.to_dict(), sort_keys=False)

    @classmethod
    def from_yaml(cls, text: str, known: Mapping[str, type[Technique]]) -> "Recipe":
        """Read `recipe.yaml`.

        Raises:
            InputError: As `from_dict`, with the line that the step begins on.
        """
        data, root = parse_yaml(text, "recipe")
        try:
            return cls.from_dict(data, known)
        except InputError as error:
            raise InputError(_with_line(str(error), _lines_of_steps(root))) from None

    def __str__(self) -> str:
        return self._described(map(str, self.steps))

    @property
    def brief(self) -> str:
        """As a list of trials says it: `kquant(bits=3 to 6)` where layers differ in bits alone."""
        alike: dict[tuple[str, ...], list[Step]] = {}
        for number, step in enumerate(self.steps):
            knobs = step.technique.set_knobs()
            place = str(number) if step.where == "*" or knobs.pop("bits", None) is None else ""
            alike.setdefault((place, step.technique.described(knobs)), []).append(step)
        return self._described(map(_in_one, alike.values()))

    def _described(self, steps: Iterable[str]) -> str:
        if not self.steps:
            return "original"
        words = ", apart" if self.apart else ""
        words += ", entropy-coded" if self.entropy_coding else ""
        return ", ".join(steps) + words


def _in_one(steps: list[Step]) -> str:
    """Steps that differ in bits and place alone, as one of all their bits."""
    if len(steps) == 1:
        return str(steps[0])
    bits = sorted((step.technique.set_knobs()["bits"] for step in steps), key=float)
    technique = steps[0].technique
    return technique.described({**technique.set_knobs(), "bits": f"{bits[0]} to {bits[-1]}"})


def _checked(kind: Any, value: Any, where: str) -> Any:
    return checked(kind, value, where, error_class=InputError)


def _lines_of_steps(root: yaml.Node | None) -> list[int]:
    """Lines, from 1, that the steps of a recipe begin on."""
    if not isinstance(root, yaml.MappingNode):
        return []
    values = [value for key, value in root.value if key.value == "steps"]
    listed = [value for value in values if isinstance(value, yaml.SequenceNode)]
    steps = [step for value in listed for step in value.value]
    return [step.start_mark.line + 1 for step in steps]


def _with_line(message: str, lines: Sequence[int]) -> str:
    """A message that names a step, with the line of that step."""
    named = re.search(r"step (\d+)", message)
    if named is None or int(named[1]) > len(lines):
        return message
    place = f"line {lines[int(named[1]) - 1]}, {named[0]}"
    return message[: named.start()] + place + message[named.end() :]


def _step(raw: Any, index: int, known: Mapping[str, type[Technique]]) -> Step:
    step: _StepFields = _checked(_StepFields, raw, f"recipe: step {index}")
    knobs = {key: v for key, v in raw.items() if key not in _StepFields.__annotations__}
    name, layers = step["technique"], raw.get("layers", {})
    if name not in known:
        raise InputError(f"recipe: step {index}: unknown technique {name!r}; known: {list(known)}")
    made = _technique(known[name], knobs, index)
    own = [
        (layer, _technique(known[name], {**knobs, **its}, index)) for layer, its in layers.items()
    ]
    return Step(made, step.get("where", "*"), tuple(own))


def _technique(kind: type[Technique], knobs: dict[str, Any], index: int) -> Technique:
    allowed = [field.name for field in fields(kind)]
    for key in knobs:
        if key not in allowed:
            raise InputError(
                f"recipe: step {index}: {kind.name} has no knob {key!r}; it has {allowed}"
            )
    _checked(kind, knobs, f"recipe: step {index}")
    return kind(**knobs)  # not what was checked: JSON makes 1.0 of a 1, and a recipe's id tells
