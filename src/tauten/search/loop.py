"""The loop, first version: try a ladder of recipes, keep the best within the goal, prove it."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from tauten.core.errors import InputError, TautenError
from tauten.core.goal import Goal
from tauten.core.journal import Journal
from tauten.core.measurement import Drop, Measurement, Quality, Trial
from tauten.core.progress import track
from tauten.core.recipe import Recipe
from tauten.data.tensors import call_model
from tauten.evaluation.divergence import Divergence, batches_within
from tauten.evaluation.formats import layer_inputs
from tauten.evaluation.latency import compare_latency
from tauten.evaluation.metrics import MODEL_ERRORS, Metric, Scores
from tauten.evaluation.task import Task
from tauten.runtime.library import load as native_kernels
from tauten.search.ladder import faster_twin
from tauten.search.speed import FormatGuard
from tauten.search.workspace import Candidate, Workspace, recipe_id

HOPELESS = 3.0  # a drop this many times the limit, twice in a row, ends the descent
ORIGINAL = Recipe(())


@dataclass
class Search:
    """One run of the loop.

    Args:
        workspace: Keeps trials and the journal.
        task: What quality means and where it is measured.
        goal: What to reach.
        stream: Load blocks one at a time.
    """

    workspace: Workspace
    task: Task
    goal: Goal
    stream: bool = False

    def __post_init__(self) -> None:
        self.trials: list[Trial] = []
        self._metric = self.task.metric()
        self._divergence: Divergence | None = None
        self._original: Scores | None = None
        self._original_model: nn.Module | None = None
        self.guard: FormatGuard | None = None

    def run(self, ladders: Sequence[Sequence[Recipe]]) -> int | None:
        """Try recipes.

        Args:
            ladders: Each goes from the gentlest recipe to the boldest; one is left where two
                recipes in a row lose far more than the goal allows. Under a latency goal formats
                slower than the unpacked layer drop out first, and the original takes part.
        Returns:
            Index of the chosen trial, None if no recipe could be measured.
        """
        self._original = self._measure_original()
        if self.goal.is_about_latency:
            self.guard = self._format_guard()
            ladders = [*(self.guard.fast(recipes) for recipes in ladders), [ORIGINAL]]
        for recipes in ladders:
            self._descend(recipes)
        return self._prefer_twin(self._best())

    def _format_guard(self) -> FormatGuard:
        model, example = self.original(), self.task.splits.development[0]
        token = torch.zeros(1, 1, dtype=torch.long)
        call = (
            (lambda: model(input_ids=token, use_cache=False))
            if self.task.is_text
            else (lambda: call_model(model, example))
        )
        inputs = layer_inputs(model, call)
        return FormatGuard(model, self.workspace.structure, inputs, self.workspace.journal)

    def _descend(self, recipes: Sequence[Recipe]) -> None:
        hopeless = 0
        for recipe in track(recipes, "trying recipes", len(recipes)):
            trial = self._try(recipe)
            self.trials.append(trial)
            self._discard_losers()
            if trial.measurement is not None:
                hopeless = hopeless + 1 if self._is_hopeless(trial.measurement) else 0
            if hopeless == 2:
                break

    def _prefer_twin(self, best: int | None) -> int | None:
        """The best recipe's faster twin, where kernels make it faster and it keeps the goal."""
        measurement = None if best is None else self.trials[best].measurement
        if best is None or measurement is None or self.verdict(measurement):
            return best
        twins = [faster_twin(self.trials[best].recipe)]
        if not native_kernels() or any(trial.recipe in twins for trial in self.trials):
            return best
        if self.guard is not None:
            twins = [twin for twin in self.guard.fast(twins) if twin in twins]
        if not twins:
            return best
        trial = self._try(twins[0])
        self.trials.append(trial)
        kept = trial.measurement is not None and not self.verdict(trial.measurement)
        if kept and measurement.latency_s is not None and trial.measurement is not None:
            kept = _latency_ratio(trial.measurement) < _latency_ratio(measurement)
        return len(self.trials) - 1 if kept else best

    def certify(self, candidate: Candidate) -> Quality:
        """Measure a candidate on the sealed test split, once a run."""
        metric, batches = self.task.metric(), self.task.splits.test
        metric.prepare(self.original(), batches)
        before = self._scores("test original", metric, self.original, batches)
        name = f"test {recipe_id(candidate.recipe)}"
        after = self._scores(name, metric, self.open(candidate), batches)
        return _quality(metric, before, after, "test")

    def verdict(self, measurement: Measurement) -> str:
        """What keeps a candidate from the goal; empty if nothing does."""
        goal, reasons = self.goal, []
        if goal.max_drop is not None and measurement.quality.drop.high > goal.max_drop:
            high = measurement.quality.drop.high
            reasons.append(f"drop may be {high:.2%}, limit {goal.max_drop:.2%}")
        if goal.max_size_bytes is not None and measurement.size_bytes > goal.max_size_bytes:
            reasons.append(f"{measurement.size_bytes} bytes, limit {goal.max_size_bytes}")
        if goal.max_memory_bytes is not None and measurement.memory_bytes > goal.max_memory_bytes:
            reasons.append(f"{measurement.memory_bytes} bytes of memory")
        if goal.max_latency_s is not None and (measurement.latency_s or 0) > goal.max_latency_s:
            reasons.append(f"slower than {goal.max_latency_s:.4f} s")  # figures: `timing.json`
        if _is_slower(measurement) and goal.is_about_latency:
            reasons.append("slower than the original on this machine")
        return "; ".join(reasons)

    def _best(self) -> int | None:
        """The cheapest trial within the goal, else the one that misses it least."""
        measured = [
            (i, t.measurement) for i, t in enumerate(self.trials) if t.measurement is not None
        ]
        if not measured:
            return None
        within = [(i, m) for i, m in measured if not self.verdict(m)]
        if within:
            return min(within, key=lambda item: self._cost(item[1]))[0]
        if self.goal.is_about_latency:
            measured = [item for item in measured if not _is_slower(item[1])] or measured
        return min(measured, key=lambda item: self._excess(item[1]))[0]

    def _cost(self, m: Measurement) -> tuple[float, float]:
        costs = {"size": m.size_bytes, "latency": _latency_ratio(m), "memory": m.memory_bytes}
        return float(costs[self.goal.minimize]), m.quality.drop.value

    def _excess(self, m: Measurement) -> float:
        """Largest factor by which a limit is exceeded."""
        limits = (
            (m.quality.drop.high, self.goal.max_drop),
            (m.size_bytes, self.goal.max_size_bytes),
            (m.memory_bytes, self.goal.max_memory_bytes),
            (m.latency_s or 0, self.goal.max_latency_s),
        )
        factors = [value / max(limit, 1e-9) for value, limit in limits if limit is not None]
        return max(factors, default=m.latency_s or 0)

    def _is_hopeless(self, measurement: Measurement) -> bool:
        limit = self.goal.max_drop
        return limit is not None and measurement.quality.drop.low > HOPELESS * limit

    def _try(self, recipe: Recipe) -> Trial:
        journal = self.workspace.journal
        known = journal.find("trial", trial=recipe_id(recipe))
        if known is not None:
            return _trial(recipe, known)
        try:
            candidate = self.workspace.apply(recipe)
            measurement = self._measure(candidate)
            trial = Trial(recipe, measurement, self.verdict(measurement) or "within the goal")
        except TautenError as error:
            trial = Trial(recipe, None, "failed", str(error))
        entry = {**asdict(trial), "recipe": recipe.to_dict()}
        journal.add("trial", trial=recipe_id(recipe), **entry)
        return trial

    def _measure(self, candidate: Candidate) -> Measurement:
        assert self._original is not None
        model = self.open(candidate)
        batches = self.task.splits.development
        name = f"development {recipe_id(candidate.recipe)}"
        scores = self._scores(name, self._metric, model, batches)
        quality = _quality(self._metric, self._original, scores, "development")
        divergence = self._reference_divergence()
        latency = original_latency = None
        if self.goal.is_about_latency:
            latency, original_latency = self._time(model if candidate.recipe.steps else None)
        return Measurement(
            quality=quality,
            size_bytes=candidate.weights.size_bytes,
            memory_bytes=candidate.memory_bytes,
            kl=float(divergence.of(model).mean()) if divergence else None,
            latency_s=latency,
            original_latency_s=original_latency,
        )

    def _time(self, model: nn.Module | None) -> tuple[float, float]:
        """Latency of a candidate, None for the original itself, and of the original."""
        example = self.task.splits.development[0]
        models = {"original": self.original()}
        if model is not None:
            models["candidate"] = model
        times = compare_latency(models, example, self.task.is_text)
        return times.get("candidate", times["original"]).median_s, times["original"].median_s

    def _measure_original(self) -> Scores:
        batches, metric = self.task.splits.development, self._metric
        try:
            metric.prepare(self.original(), batches)
            return self._scores("development original", metric, self.original, batches)
        except MODEL_ERRORS as error:
            reason = str(error).splitlines()[0]
            raise InputError(
                f"{metric.name} can't be measured on the original with this data: {reason}"
            ) from error

    def _reference_divergence(self) -> Divergence | None:
        if not self.task.is_text:
            return None
        if self._divergence is None:
            model = self.original()
            vocabulary = int(model.config.vocab_size)  # type: ignore[union-attr, arg-type]
            batches = batches_within(self.task.splits.development, vocabulary)
            self._divergence = Divergence(model, batches)
        return self._divergence

    def original(self) -> nn.Module:
        """The original, ready to be called; opened once."""
        if self._original_model is None:
            blocks = self.workspace.structure.blocks
            self._original_model = self.workspace.source.open(blocks, self.stream)
        return self._original_model

    def open(self, candidate: Candidate) -> nn.Module:
        """A candidate, ready to be called."""
        return candidate.source.open(candidate.blocks, self.stream)

    def _scores(self, name: str, metric: Metric, model: Any, batches: Sequence[Any]) -> Scores:
        return journaled_scores(self.workspace.journal, name, metric, model, batches)

    def _discard_losers(self) -> None:
        best = self._best()
        for index, trial in enumerate(self.trials):
            if index != best and trial.measurement is not None:
                self.workspace.discard(trial.recipe)


def journaled_scores(
    journal: Journal, name: str, metric: Metric, model: Any, batches: Sequence[Any]
) -> Scores:
    """Scores from the journal, or measured and journaled; floats survive JSON exactly.

    Args:
        model: The model, or a function without arguments that opens it.
    """
    known = journal.find("scores", of=name)
    if known is None:
        scores = metric.scores(model if isinstance(model, nn.Module) else model(), batches)
        total, weight = scores.total.tolist(), scores.weight.tolist()
        journal.add("scores", of=name, total=total, weight=weight)
        return scores
    recorded = torch.tensor(known["total"], dtype=torch.float64)
    return Scores(recorded, torch.tensor(known["weight"], dtype=torch.float64))


def _latency_ratio(measurement: Measurement) -> float:
    """Beside the original of the same run: trials are timed at noisier and quieter moments."""
    return (measurement.latency_s or 0) / (measurement.original_latency_s or 1)


def _is_slower(measurement: Measurement) -> bool:
    return _latency_ratio(measurement) > 1


def _quality(metric: Metric, before: Scores, after: Scores, split: str) -> Quality:
    drop = metric.drop(before, after)
    return Quality(metric.name, metric.value(after), metric.value(before), drop, split)


def _trial(recipe: Recipe, entry: dict[str, Any]) -> Trial:
    raw = entry["measurement"]
    measurement = None
    if raw is not None:
        quality = {**raw["quality"], "drop": Drop(**raw["quality"]["drop"])}
        measurement = Measurement(**{**raw, "quality": Quality(**quality)})
    return Trial(recipe, measurement, entry["verdict"], entry["error"])
