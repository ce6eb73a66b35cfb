"""What an artifact says of itself: the types of `tauten.json` and `timing.json`.

Fields that earlier versions didn't write needn't be there; those of later ones are passed over.
"""

from typing import Annotated, Any

from annotated_types import Ge, Le
from typing_extensions import NotRequired, TypedDict

from tauten.core.description import Count, Digest, Shape, Size
from tauten.models.surgery import Surgery

Figure = float | None  # None where it wasn't finite


class SourceFacts(TypedDict):
    """The original."""

    name: str
    kind: str
    fingerprint: NotRequired[str]
    size_bytes: Count
    bf16_bytes: NotRequired[Count]
    parameters: NotRequired[Count]


class WeightsFacts(TypedDict):
    """The file of weights."""

    file: str
    size_bytes: Count
    sha256: Digest


class GoalFacts(TypedDict):
    """See `core.goal`."""

    max_drop: NotRequired[Annotated[float, Ge(0), Le(1e100)] | None]
    max_size_bytes: NotRequired[Figure]
    max_latency_s: NotRequired[Figure]
    max_memory_bytes: NotRequired[Figure]
    minimize: NotRequired[str]
    drop_unit: NotRequired[str]


class DropFacts(TypedDict):
    """See `core.measurement`, as for the next ones."""

    value: Figure
    low: Figure
    high: Figure
    examples: Count
    unit: NotRequired[str]


class QualityFacts(TypedDict):
    """On one split."""

    metric: str
    value: Figure
    original: Figure
    drop: DropFacts
    split: str
    higher_is_better: NotRequired[bool]
    counted: NotRequired[str]


class MeasurementFacts(TypedDict):
    """Of one candidate."""

    quality: QualityFacts
    size_bytes: Count
    memory_bytes: Count
    kl: NotRequired[Figure]
    latency_s: NotRequired[Figure]
    original_latency_s: NotRequired[Figure]


class TrialFacts(TypedDict):
    """One recipe that was tried."""

    measurement: MeasurementFacts | None
    recipe: NotRequired[dict[str, Any]]
    verdict: NotRequired[str]
    error: NotRequired[str]
    predicted_kl: NotRequired[Figure]
    label: NotRequired[str]


class LayerFacts(TypedDict):
    """What was decided for one layer."""

    name: str
    unit: str
    shape: Shape
    format: str
    bits_per_weight: Annotated[float, Ge(0), Le(2**40)]
    original_bytes: Count
    size_bytes: Count
    error: Figure
    reason: str
    held_by: NotRequired[str]
    zeros: NotRequired[Figure]
    zeros_lost: NotRequired[Figure]


class RevertFacts(TypedDict):
    """A format that dropped out because it was slower."""

    layer: str
    format: str
    instead: str


class RevertTimes(RevertFacts):
    """How much slower."""

    packed_s: NotRequired[Figure]
    unpacked_s: NotRequired[Figure]


class ShapingFacts(TypedDict):
    """What a step before packing did."""

    step: str
    summary: str


class UnitLevels(TypedDict):
    """What a unit takes and is estimated to lose at each level."""

    size_bytes: list[Figure]
    losses: list[Figure]


class LevelFacts(TypedDict):
    """Levels that a search mixed."""

    levels: list[str]
    units: dict[str, UnitLevels]


class DataFacts(TypedDict):
    """What was measured on."""

    name: str
    documents: NotRequired[dict[str, Count]]
    tokens: NotRequired[dict[str, Count]]


class Manifest(TypedDict):
    """`tauten.json`.

    `modules` are checked where they are built (`packing.install_empty`), recipes where they are
    applied.
    """

    format: Size
    tauten: NotRequired[str]
    source: SourceFacts
    weights: WeightsFacts
    files: NotRequired[dict[str, Digest]]
    modules: dict[str, dict[str, Any]]
    structure: NotRequired[list[Surgery]]
    made_from: NotRequired[dict[str, dict[str, Any]] | None]
    written_out: NotRequired[list[str]]
    recipe: dict[str, Any]
    recipe_text: NotRequired[str]
    cautions: NotRequired[list[str]]
    goal: NotRequired[GoalFacts | None]
    memory_bytes: NotRequired[Count]
    shaping: NotRequired[list[ShapingFacts]]
    layers: list[LayerFacts]
    levels: NotRequired[LevelFacts | None]
    trials: NotRequired[list[TrialFacts]]
    chosen: NotRequired[Count | None]
    reverted: NotRequired[list[RevertFacts]]
    certified: NotRequired[bool]
    reason: NotRequired[str]
    test: NotRequired[QualityFacts | None]
    data: NotRequired[DataFacts | None]
    seed: NotRequired[int]


class LatencyFacts(TypedDict):
    """Times of one model."""

    median_s: float
    spread_s: NotRequired[Figure]
    prefill_s: NotRequired[Figure]
    tokens_per_s: NotRequired[Figure]
    rss_bytes: NotRequired[Figure]


class MachineFacts(TypedDict):
    """What the figures were measured on."""

    cpu: NotRequired[str]
    threads: NotRequired[Count]
    torch: NotRequired[str]
    python: NotRequired[str]
    tauten: NotRequired[str]


class TrialTimes(TypedDict):
    """Of one trial; empty for one that wasn't measured."""

    latency_s: NotRequired[Figure]
    original_latency_s: NotRequired[Figure]


class MoreFacts(TypedDict):
    """What a longer search would probably bring."""

    effort: str
    gain: float
    time_s: float


class Timing(TypedDict):
    """`timing.json`."""

    unit: NotRequired[str]
    original: NotRequired[LatencyFacts]
    chosen: NotRequired[LatencyFacts]
    given_up: NotRequired[LatencyFacts]
    machine: NotRequired[MachineFacts]
    formats: NotRequired[list[RevertTimes]]
    trials: NotRequired[list[TrialTimes]]
    more: NotRequired[MoreFacts]
    seconds: NotRequired[float]
