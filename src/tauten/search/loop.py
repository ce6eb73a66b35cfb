"""The loop: try recipes, each in view of what those before came to, keep the best, prove it."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from time import monotonic
from typing import Any

import torch
from torch import nn

from tauten.core.errors import TautenError
from tauten.core.goal import Goal
from tauten.core.measurement import Drop, Measurement, Quality, Trial
from tauten.core.progress import track
from tauten.core.recipe import Recipe
from tauten.data.tensors import call_model
from tauten.evaluation.formats import layer_inputs
from tauten.evaluation.task import Task
from tauten.models.calibration import CalibrationBatch
from tauten.runtime.library import load as native_kernels
from tauten.search.evaluator import Evaluator
from tauten.search.ladder import faster_twin, ladders
from tauten.search.levels import LevelTable, is_level, level_table
from tauten.search.proposals import MOST, Measured, Proposals
from tauten.search.speed import FormatGuard
from tauten.search.workspace import Candidate, Workspace, recipe_id

HOPELESS = 3.0  # a drop this many times the limit, twice in a row, ends the descent
ORIGINAL = Recipe(())
_log = logging.getLogger(__name__)


@dataclass
class Search:
    """One run of the loop.

    Args:
        workspace: Keeps trials and the journal.
        task: What quality means and where it is measured.
        goal: What to reach.
        stream: Load blocks one at a time.
        entropy_coding: Of recipes that it makes.
        max_time_s: Time in which to find the best; the last trial ends before, as far as those
            before it tell. A run that goes on after a kill has it anew.
    """

    workspace: Workspace
    task: Task
    goal: Goal
    stream: bool = False
    entropy_coding: bool = False
    max_time_s: float | None = None

    def __post_init__(self) -> None:
        self.trials: list[Trial] = []
        timed = self.goal.is_about_latency
        self.evaluator = Evaluator(self.workspace, self.task, self.stream, timed)
        self.guard: FormatGuard | None = None
        self.table: LevelTable | None = None
        self._started = self._longest_s = 0.0

    def run(
        self, skeleton: nn.Module, pillars: Sequence[str], development: Sequence[CalibrationBatch]
    ) -> int:
        """Try recipes until the goal is met as well as they can, or time is up.

        Ladders go from the gentlest recipe to the boldest; one is left where recipes lose far more
        than the goal allows. Then layers of those recipes are mixed, each mix in view of what those
        before it came to. Under a latency goal nothing is mixed, formats slower than the unpacked
        layer drop out first, and the original takes part.

        Args:
            skeleton: Of the original.
            pillars: Some of `quantize` and `compress`.
            development: The development split as calls of the model.
        Returns:
            Index of the chosen trial.
        Raises:
            InputError: The original can't be measured on this data.
            TautenError: No recipe could be measured.
        """
        self._started = monotonic()
        self.evaluator.start()
        mixes = self._can_mix()
        found = self._ladders(skeleton, pillars, mixes)
        self.evaluator.looks = sum(map(len, found)) + MOST * mixes + 2  # in sequence, and a twin
        for recipes in found:
            self._descend(recipes)
        if mixes:
            self._mix(skeleton, development)
            self._pack_in_sequence()
        chosen = self._prefer_twin(self._best())
        if chosen is None:
            reasons = sorted({trial.error for trial in self.trials})
            raise TautenError(f"no recipe could be measured: {'; '.join(reasons)}")
        return chosen

    def _can_mix(self) -> bool:
        """Whether the goal has a scale to mix by: a limit on the drop, or on bytes."""
        has_scale = self.goal.max_drop is not None or self.goal.is_budget
        return has_scale and not self.goal.is_about_latency

    def _ladders(
        self, skeleton: nn.Module, pillars: Sequence[str], mixes: bool
    ) -> list[Sequence[Recipe]]:
        found: list[Sequence[Recipe]] = [
            [replace(recipe, entropy_coding=self.entropy_coding, apart=mixes) for recipe in recipes]
            for recipes in ladders(skeleton, self.workspace.structure, pillars, mixes)
        ]
        if self.goal.is_about_latency:
            self.guard = self._format_guard()
            found = [*(self.guard.fast(recipes) for recipes in found), [ORIGINAL]]
        return found

    def _mix(self, skeleton: nn.Module, development: Sequence[CalibrationBatch]) -> None:
        """Mix layers of the recipes that were tried.

        Args:
            skeleton: Of the original.
            development: Data to judge layers on.
        """
        levels = [t for t in self.trials if t.measurement is not None and is_level(t.recipe)]
        if len(levels) < 2 or self._time_is_up():
            return
        candidates = [self.workspace.apply(trial.recipe) for trial in levels]
        self.table = self._level_table(skeleton, development, candidates, levels)
        if self.table is None:
            return
        proposals, measured = Proposals(self.table, self.goal), list[Measured]()
        for index, trial in enumerate(levels):
            if trial.measurement is not None:
                measured.append(
                    Measured(torch.full((len(self.table.units),), index), trial.measurement)
                )
        for _ in track(range(MOST), "mixing levels", MOST):
            chosen = proposals.next(measured)
            if chosen is None or self._time_is_up():
                break
            recipe = self.table.recipe(chosen)
            level_of = self.table.level_of(chosen)
            parents = {name: candidates[level] for name, level in level_of.items()}
            trial = self._add(recipe, self.table.loss(chosen), parents)
            if trial.measurement is None:
                break
            measured.append(Measured(chosen, trial.measurement))

    def _pack_in_sequence(self) -> None:
        """Try the best recipe so far with each block calibrated behind the packed ones before it.

        It takes as many bytes and mostly loses less.
        """
        best = self._best()
        recipe = ORIGINAL if best is None else replace(self.trials[best].recipe, apart=False)
        if any(step.technique.looks_at_inputs for step in recipe.steps) and not self._time_is_up():
            self._add(recipe)

    def _level_table(
        self,
        skeleton: nn.Module,
        development: Sequence[CalibrationBatch],
        candidates: Sequence[Candidate],
        levels: Sequence[Trial],
    ) -> LevelTable | None:
        """The table of some trials; None where a model's sensitivities can't be found."""
        source, structure = self.workspace.source, self.workspace.structure
        loader = source.loader(skeleton, structure.blocks) if source.reader else None
        kls = [trial.measurement.kl if trial.measurement else None for trial in levels]
        journal = self.workspace.journal
        try:
            return level_table(skeleton, structure, loader, development, candidates, kls, journal)
        except RuntimeError as error:  # torch: something in it has no derivative
            reason = str(error).splitlines()[0]
            _log.warning("levels aren't mixed, as the model has no sensitivities: %s", reason)
            return None

    def _time_is_up(self) -> bool:
        """Whether another trial, as long as the longest so far, would end after the time given."""
        if self.max_time_s is None or not self.trials:
            return False
        spent = monotonic() - self._started
        return spent + self._longest_s > self.max_time_s

    def _format_guard(self) -> FormatGuard:
        model, example = self.evaluator.original(), self.task.splits.development[0]
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
            if self._time_is_up():
                return
            trial = self._add(recipe)
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
        if self.goal.is_budget:
            return (m.quality.drop.value if m.kl is None else m.kl), m.size_bytes
        costs = {"size": m.size_bytes, "latency": _latency_ratio(m), "memory": m.memory_bytes}
        return float(costs[self.goal.minimize]), m.quality.drop.value

    def _excess(self, m: Measurement) -> float:
        """Largest factor by which a limit is exceeded."""
        limits = self.goal.limits
        factors = [m.cost(name) / max(limit, 1e-9) for name, limit in limits.items()]
        return max(factors, default=m.latency_s or 0)

    def _is_hopeless(self, measurement: Measurement) -> bool:
        limit = self.goal.max_drop
        if self.goal.is_budget:  # bolder recipes would fit as well, and lose more
            return all(measurement.cost(name) <= value for name, value in self.goal.limits.items())
        return limit is not None and measurement.quality.drop.low > HOPELESS * limit

    def _add(
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
        began = monotonic()
        trial = replace(self._try(recipe, parents), predicted_kl=predicted_kl)
        self.trials.append(trial)
        self._discard_losers()
        self._longest_s = max(self._longest_s, monotonic() - began)
        return trial

    def _try(self, recipe: Recipe, parents: Mapping[str, Candidate] | None = None) -> Trial:
        journal = self.workspace.journal
        known = journal.find("trial", trial=recipe_id(recipe))
        if known is not None:
            return _trial(recipe, known)
        try:
            workspace = self.workspace
            candidate = workspace.cut(recipe, parents) if parents else workspace.apply(recipe)
            measurement = self.evaluator.measure(candidate)
            trial = Trial(recipe, measurement, self.verdict(measurement) or "within the goal")
        except TautenError as error:
            trial = Trial(recipe, None, "failed", str(error))
        entry = {**asdict(trial), "recipe": recipe.to_dict()}
        journal.add("trial", trial=recipe_id(recipe), **entry)
        return trial

    def _discard_losers(self) -> None:
        best, mixes = self._best(), self._can_mix()
        for index, trial in enumerate(self.trials):
            may_be_mixed = mixes and trial.predicted_kl is None and is_level(trial.recipe)
            if index != best and trial.measurement is not None and not may_be_mixed:
                self.workspace.discard(trial.recipe)


def _latency_ratio(measurement: Measurement) -> float:
    """Beside the original of the same run: trials are timed at noisier and quieter moments."""
    return (measurement.latency_s or 0) / (measurement.original_latency_s or 1)


def _is_slower(measurement: Measurement) -> bool:
    return _latency_ratio(measurement) > 1


def _trial(recipe: Recipe, entry: dict[str, Any]) -> Trial:
    raw = entry["measurement"]
    measurement = None
    if raw is not None:
        quality = {**raw["quality"], "drop": Drop(**raw["quality"]["drop"])}
        measurement = Measurement(**{**raw, "quality": Quality(**quality)})
    return Trial(recipe, measurement, entry["verdict"], entry["error"])
