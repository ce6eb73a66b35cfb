"""The trials of a run: what each came to, which is best, and which stay on disk."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from time import monotonic
from typing import Any

from tauten.core.errors import ENDING, told
from tauten.core.figures import format_bytes, format_loss, loss_word
from tauten.core.files import DISK_ERRORS
from tauten.core.goal import Goal
from tauten.core.measurement import Drop, Measurement, Quality, Trial
from tauten.core.printing import logger
from tauten.core.progress import show_best
from tauten.core.recipe import Recipe
from tauten.search.ahead import Ahead
from tauten.search.candidate import Candidate
from tauten.search.evaluator import Evaluator
from tauten.search.work import Work
from tauten.search.workspace import Workspace, recipe_id

_log = logger(__name__)
HOPELESS = 3.0  # a drop this many times the limit: bolder recipes are out of reach


class Trials:
    """Tries recipes, one after the other, and judges them by a goal.

    Args:
        workspace: Keeps what they make, and the journal.
        evaluator: Measures them.
        goal: To judge by.
        work: Counts what trials take.
        mixes: Layers of some will be mixed, so that those stay on disk.
        max_time_s: Time for all of them and the certificate; None for no limit.
    Attributes:
        tried: In order.
        ahead: Workers that try recipes before they are asked for; None to try each when it is.
    """

    def __init__(
        self,
        workspace: Workspace,
        evaluator: Evaluator,
        goal: Goal,
        work: Work,
        mixes: bool = False,
        max_time_s: float | None = None,
    ):
        self.workspace, self.evaluator, self.goal, self.work = workspace, evaluator, goal, work
        self.tried: list[Trial] = []
        self._mixes, self._max_time_s = mixes, max_time_s
        self._started, self._longest_s = monotonic(), 0.0
        self.ahead: Ahead | None = None

    def expect(self, recipes: Sequence[Recipe]) -> None:
        """Recipes that will probably be tried next, in this order."""
        if self.ahead is not None and self._max_time_s is None:
            self.ahead.expect(recipes)

    def add(
        self,
        recipe: Recipe,
        predicted_kl: float | None = None,
        parents: Mapping[str, Candidate] | None = None,
    ) -> Trial:
        """Try a recipe; keep it on disk if it is the best so far, or may be mixed.

        Args:
            recipe: To try.
            predicted_kl: Its estimated divergence.
            parents: By layer, candidates that it is cut from.
        """
        began, work = monotonic(), self.work.of(recipe, parents is not None)
        is_known = self._known(recipe) is not None
        trial = replace(self.measure(recipe, parents), predicted_kl=predicted_kl)
        self.tried.append(trial)
        self._discard_losers()
        seconds = monotonic() - began
        self._longest_s = max(self._longest_s, seconds)
        self.work.did(work, None if is_known else seconds, recipe)
        _log.info("trial %d, %s: %s", len(self.tried), recipe.brief, _told(trial))
        show_best(self._best_told())
        return trial

    def _known(self, recipe: Recipe) -> dict[str, Any] | None:
        return self.workspace.journal.find("trial", trial=recipe_id(recipe))

    def _best_told(self) -> str:
        """The best so far, in short."""
        best = self.best()
        found = None if best is None else self.tried[best].measurement
        if best is None or found is None:
            return "nothing could be measured yet"
        missed = "misses the goal: " if self.verdict(found) else ""
        return f"best so far: {missed}trial {best + 1}, {_told(self.tried[best])}"

    def measure(self, recipe: Recipe, parents: Mapping[str, Candidate] | None = None) -> Trial:
        """Apply and measure a recipe, or find in the journal what it came to; as for `add`."""
        known = self._known(recipe)
        if known is not None:
            return _trial(recipe, known)
        made = self.ahead.take(recipe) if self.ahead is not None and not parents else None
        trial = self._tried(recipe, parents) if made is None else self._judged(recipe, made)
        if trial.measurement is not None:  # a run that goes on tries what failed again
            entry = {**asdict(trial), "recipe": recipe.to_dict()}
            self.workspace.journal.add("trial", trial=recipe_id(recipe), **entry)
        return trial

    def _tried(self, recipe: Recipe, parents: Mapping[str, Candidate] | None) -> Trial:
        try:
            workspace = self.workspace
            candidate = workspace.cut(recipe, parents) if parents else workspace.apply(recipe)
            measurement = self.evaluator.measure(candidate)
        except ENDING:
            raise
        except Exception as error:  # a technique or metric may be a user's: others go on without it
            if isinstance(error, OSError) and error.errno in DISK_ERRORS:
                raise
            return Trial(recipe, None, "failed", told(error))
        return Trial(recipe, measurement, self.verdict(measurement) or "within the goal")

    def _judged(self, recipe: Recipe, made: dict[str, Any]) -> Trial:
        """A trial that a worker made."""
        entry = {"measurement": made["measurement"], "verdict": "failed", "error": made["error"]}
        trial = _trial(recipe, entry)
        if trial.measurement is None:
            return trial
        return replace(trial, verdict=self.verdict(trial.measurement) or "within the goal")

    def verdict(self, measurement: Measurement) -> str:
        """What keeps a candidate from the goal; empty if nothing does."""
        goal, reasons = self.goal, []
        if goal.max_drop is not None and measurement.quality.drop.high > goal.max_drop:
            quality, unit = measurement.quality, goal.drop_unit
            high = format_loss(quality.drop.high, unit)
            limit = format_loss(goal.max_drop, unit)
            reasons.append(f"{loss_word(quality.higher_is_better)} may be {high}, limit {limit}")
        if goal.max_size_bytes is not None and measurement.size_bytes > goal.max_size_bytes:
            reasons.append(f"{measurement.size_bytes} bytes, limit {goal.max_size_bytes}")
        if goal.max_memory_bytes is not None and measurement.memory_bytes > goal.max_memory_bytes:
            reasons.append(f"{measurement.memory_bytes} bytes of memory")
        if goal.max_latency_s is not None and (measurement.latency_s or 0) > goal.max_latency_s:
            reasons.append(f"slower than {goal.max_latency_s:.4f} s")  # figures: `timing.json`
        if _is_slower(measurement) and goal.is_about_latency:
            reasons.append("slower than the original on this machine")
        return "; ".join(reasons)

    def best(self) -> int | None:
        """The cheapest trial within the goal, else the one that misses it least."""
        measured = [
            (i, t.measurement) for i, t in enumerate(self.tried) if t.measurement is not None
        ]
        if not measured:
            return None
        within = [(i, m) for i, m in measured if not self.verdict(m)]
        if within:
            return min(within, key=lambda item: self._cost(item[1]))[0]
        if self.goal.is_about_latency:
            measured = [item for item in measured if not _is_slower(item[1])] or measured
        return min(measured, key=lambda item: self._excess(item[1]))[0]

    def is_hopeless(self, measurement: Measurement) -> bool:
        """Whether bolder recipes are out of question."""
        limit = self.goal.max_drop
        if self.goal.is_budget:  # they would fit as well, and lose more
            return all(measurement.cost(name) <= value for name, value in self.goal.limits.items())
        return limit is not None and measurement.quality.drop.low > HOPELESS * limit

    def time_is_up(self) -> bool:
        """Whether another trial, as long as the longest so far, would bring the end too late."""
        if self._max_time_s is None or not self.tried:
            return False
        spent = monotonic() - self._started
        return spent + self._longest_s + self.work.closing_s > self._max_time_s

    def _cost(self, m: Measurement) -> tuple[float, float]:
        if self.goal.is_budget:
            return (m.quality.drop.value if m.kl is None else m.kl), m.size_bytes
        costs = {"size": m.size_bytes, "latency": latency_ratio(m), "memory": m.memory_bytes}
        return float(costs[self.goal.minimize]), m.quality.drop.value

    def _excess(self, m: Measurement) -> float:
        """Largest factor by which a limit is exceeded."""
        limits = self.goal.limits
        factors = [m.cost(name) / max(limit, 1e-9) for name, limit in limits.items()]
        return max(factors, default=m.latency_s or 0)

    def _discard_losers(self) -> None:
        best = self.best()
        for index, trial in enumerate(self.tried):
            may_be_mixed = self._mixes and trial.predicted_kl is None and trial.recipe.is_level
            if index != best and trial.measurement is not None and not may_be_mixed:
                self.workspace.discard(trial.recipe)


def latency_ratio(measurement: Measurement) -> float:
    """Beside the original of the same run: trials are timed at noisier and quieter moments."""
    return (measurement.latency_s or 0) / (measurement.original_latency_s or 1)


def _is_slower(measurement: Measurement) -> bool:
    return latency_ratio(measurement) > 1


def _told(trial: Trial) -> str:
    """What a trial came to, in short."""
    found = trial.measurement
    if found is None:
        return f"failed: {trial.error}"
    return f"{format_bytes(found.size_bytes)}, {found.quality.told}"


def _trial(recipe: Recipe, entry: dict[str, Any]) -> Trial:
    raw = entry["measurement"]
    measurement = None
    if raw is not None:
        quality = {**raw["quality"], "drop": Drop(**raw["quality"]["drop"])}
        measurement = Measurement(**{**raw, "quality": Quality(**quality)})
    return Trial(recipe, measurement, entry["verdict"], entry["error"])
