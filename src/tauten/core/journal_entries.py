"""What the lines of a run's journal hold, by their event: the types that they are checked by."""

from typing import Annotated, Any

from pydantic import AfterValidator, StringConstraints
from typing_extensions import NotRequired, TypedDict

from tauten.core.description import Count, Digest
from tauten.core.measurement import LayerRecord, Measurement


class Entry(TypedDict):
    """A line."""

    event: str


class Task(Entry):
    """A result of a task that was given an input."""

    id: Annotated[str, StringConstraints(pattern=r"^[0-9]{1,18}$")]
    sha256: Digest
    input: Digest


class Block(Entry):
    """A part of a model that is packed or trained, and the digest of its file."""

    trial: str
    part: str
    sha256: Digest
    specs: NotRequired[dict[str, dict[str, Any]]]
    layers: NotRequired[list[LayerRecord]]
    saved_bytes: NotRequired[dict[str, Count]]
    surgery: NotRequired[dict[str, Any]]
    facts: NotRequired[dict[str, Any]]


class Decision(Entry):
    """A recipe that another became."""

    of: str
    recipe: dict[str, Any]


class Revert(TypedDict):
    """A format that was slower than another."""

    layer: str
    format: str
    unpacked_s: float
    packed_s: float
    tokens: Count
    instead: str


class Formats(Decision):
    """A recipe less what is slower on this machine."""

    reverts: list[Revert]


class Dense(Entry):
    """Layers of a trial that are slower packed."""

    of: str
    names: list[str]
    reverts: list[Revert]
    more_bytes: int


class Cell(TypedDict):
    """What a weight takes and loses at a level."""

    size_bytes: Count
    loss: float
    error: float


def _one_a_level(entry: "Levels") -> "Levels":
    if len(entry["cells"]) != len(entry["levels"]):
        raise ValueError(f"{len(entry['cells'])} cells: expected one a level")
    return entry


class Levels(Entry):
    """A row of the table of levels."""

    layer: str
    levels: list[str]
    whole: Count
    known: bool
    cells: list[Cell]


class Group(Entry):
    """The divergence of a candidate of which some layers are packed."""

    of: str
    layers: list[str]
    kl: float


class Latency(TypedDict):
    """Times of one model."""

    median_s: float
    spread_s: float
    prefill_s: float | None
    tokens_per_s: float | None


class Timed(Entry):
    """The original and a candidate in one alternated run."""

    of: str
    unit: str
    original: Latency
    chosen: Latency
    machine: dict[str, Any]


def _one_a_weight(entry: "Scores") -> "Scores":
    if len(entry["total"]) != len(entry["weight"]) or not entry["total"]:
        raise ValueError(f"{len(entry['total'])} totals: expected one a weight, and some")
    return entry


class Scores(Entry):
    """What a model scored on each example."""

    of: str
    total: list[float]
    weight: list[float]


class Trusted(Entry):
    """What a ruined model loses by the metric."""

    unit: str
    ruined: float


class Trial(Entry):
    """What a recipe came to."""

    trial: str
    recipe: dict[str, Any]
    measurement: Measurement | None
    verdict: str
    error: str


ENTRIES: dict[str, Any] = {
    "task": Task,
    "block": Block,
    "zeros": Decision,
    "formats": Formats,
    "dense": Dense,
    "levels": Annotated[Levels, AfterValidator(_one_a_level)],
    "group": Group,
    "timed": Timed,
    "scores": Annotated[Scores, AfterValidator(_one_a_weight)],
    "trusted": Trusted,
    "trial": Trial,
}
