"""What was measured, and what came of a run."""

from dataclasses import dataclass, field
from typing import Any

from torch import nn

from tauten.core.figures import format_loss, loss_word
from tauten.core.recipe import Recipe


@dataclass(frozen=True)
class Drop:
    """Loss of quality against the original, on the same examples.

    Attributes:
        value: Estimate; 0.02 is 2% worse, below 0 is better than the original.
        low: Lower end of the interval: the loss is above it with `confidence`.
        high: Upper end: the loss is below it with `confidence`.
        examples: Independent units (documents, images, groups) behind it.
        confidence: Of each end on its own, 0.95; more while searching, so that the ends of all
            that was tried hold together with 0.95.
        unit: As `Goal.drop_unit`; by default all three are shares of the original's value.
    """

    value: float
    low: float
    high: float
    examples: int
    confidence: float = 0.95
    unit: str = ""


@dataclass(frozen=True)
class Quality:
    """A metric's value on one split.

    Attributes:
        metric: Name of the metric.
        value: Of this model.
        original: Of the original, on the same examples.
        drop: Paired loss.
        split: `development` or `test`.
        higher_is_better: Else a loss is a rise.
        counted: What an independent unit is: `example`, `document`, `group` or `batch`.
    """

    metric: str
    value: float
    original: float
    drop: Drop
    split: str
    higher_is_better: bool = True
    counted: str = "example"

    @property
    def told(self) -> str:
        """What was lost and what may have been, in short."""
        word, drop = loss_word(self.higher_is_better), self.drop
        value, high = (format_loss(v, drop.unit) for v in (drop.value, drop.high))
        return f"{word} {value}, at most {high}"


@dataclass(frozen=True)
class Measurement:
    """What is known of one candidate.

    Attributes:
        quality: On the development split.
        size_bytes: Exact bytes of its weights file.
        kl: Mean KL(original || candidate) a token in nats, None where the metric has none.
        latency_s: Median of one token or call, None where it wasn't timed.
        original_latency_s: Of the original in the same alternated run.
        memory_bytes: Its tensors in memory.
    """

    quality: Quality
    size_bytes: int
    memory_bytes: int
    kl: float | None = None
    latency_s: float | None = None
    original_latency_s: float | None = None

    def cost(self, limit: str) -> float:
        """What a limit of `Goal` is compared with; a drop counts as much as it may be."""
        return {
            "max_drop": self.quality.drop.high,
            "max_size_bytes": float(self.size_bytes),
            "max_memory_bytes": float(self.memory_bytes),
            "max_latency_s": self.latency_s or 0.0,
        }[limit]


@dataclass(frozen=True)
class LayerRecord:
    """What was decided for one layer and why.

    Attributes:
        name: Module name.
        unit: Name of the unit's first layer; layers of a unit share a decision.
        shape: Of its weight.
        format: How it is held now, such as `integer 4 bit`.
        bits_per_weight: Scales and all.
        original_bytes: Of its weight before.
        size_bytes: Of its weight now; 0 for a tied twin, which is stored once.
        error: |W - W'| / |W| (Frobenius), 0 where it is unchanged.
        reason: Why.
        held_by: Class of the module that held it before.
        zeros: Share of its weights that were zero, 0 where it wasn't pruned before.
        zeros_lost: Share of its weights that were zero and aren't any more.
    """

    name: str
    unit: str
    shape: tuple[int, ...]
    format: str
    bits_per_weight: float
    original_bytes: int
    size_bytes: int
    error: float
    reason: str
    held_by: str = ""
    zeros: float = 0.0
    zeros_lost: float = 0.0


@dataclass(frozen=True)
class Trial:
    """One recipe that was tried.

    Attributes:
        recipe: What was applied.
        measurement: What came of it, None if it failed.
        verdict: How it compares with the goal.
        error: Why it failed.
        predicted_kl: What its KL was estimated at beforehand, None where it wasn't.
    """

    recipe: Recipe
    measurement: Measurement | None
    verdict: str = ""
    error: str = ""
    predicted_kl: float | None = None


@dataclass
class Result:
    """What a run found.

    Attributes:
        model: The chosen model, called like the original.
        recipe: How it was made.
        certified: The drop's 95% bound is within the goal on data that nothing was chosen on.
        reason: Why this one, or why no better.
        trials: All that was tried, in order.
        layers: The decision for each layer.
        test: Quality of the chosen model on the sealed test split.
        original: Facts of the original: size_bytes, bf16_bytes, memory_bytes, latency_s.
        timing: Figures that differ from run to run: latencies, tokens per second, memory.
        path: Folder of the artifact, if one was written.
    """

    model: nn.Module | None
    recipe: Recipe
    certified: bool
    reason: str
    trials: list[Trial]
    layers: list[LayerRecord]
    test: Quality | None
    original: dict[str, Any] = field(default_factory=dict)
    timing: dict[str, Any] = field(default_factory=dict)
    path: str | None = None

    def frontier(self) -> list[Trial]:
        """Trials that no other beats in both size and drop, smallest first."""
        done = [t for t in self.trials if t.measurement is not None]
        done.sort(key=lambda t: (t.measurement.size_bytes, t.measurement.quality.drop.value))  # type: ignore[union-attr]
        best, kept = float("inf"), []
        for trial in done:
            assert trial.measurement is not None
            if trial.measurement.quality.drop.value < best:
                best = trial.measurement.quality.drop.value
                kept.append(trial)
        return kept
