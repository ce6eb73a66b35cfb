"""The loop: try recipes, each in view of what those before came to, keep the best."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from time import monotonic

import torch
from torch import nn

from tauten.core.effort import NORMAL, Effort
from tauten.core.errors import TautenError
from tauten.core.goal import Goal
from tauten.core.measurement import Measurement, Trial
from tauten.core.printing import logger
from tauten.core.progress import track
from tauten.core.recipe import Recipe
from tauten.data.tensors import call_model
from tauten.evaluation.formats import layer_inputs
from tauten.evaluation.task import Task
from tauten.models.calibration import CalibrationBatch
from tauten.runtime.library import load as native_kernels
from tauten.search.ahead import Ahead
from tauten.search.combining import MOST, combine
from tauten.search.evaluator import Evaluator
from tauten.search.ladder import MIDDLE, faster_twin, ladders
from tauten.search.levels import LevelTable
from tauten.search.mixing import LOOKS, Mixing
from tauten.search.speed import FormatGuard
from tauten.search.trials import Trials, latency_ratio
from tauten.search.work import Work
from tauten.search.workspace import Workspace

_log = logger(__name__)
ORIGINAL = Recipe(())


@dataclass
class Search:
    """One run of the loop.

    Args:
        workspace: Keeps trials and the journal.
        task: What quality means and where it is measured.
        goal: What to reach.
        stream: Load blocks one at a time.
        entropy_coding: Of recipes that it makes.
        max_time_s: Time in which to find and certify the best, as far as the trials before the
            last tell; one is always tried. A run that goes on after a kill has it anew.
        effort: What one more trial must promise.
    """

    workspace: Workspace
    task: Task
    goal: Goal
    stream: bool = False
    entropy_coding: bool = False
    max_time_s: float | None = None
    effort: Effort = NORMAL

    def __post_init__(self) -> None:
        timed = self.goal.is_about_latency
        unit = self.goal.drop_unit
        self.evaluator = Evaluator(self.workspace, self.task, self.stream, timed, unit)
        self.guard: FormatGuard | None = None
        self.table: LevelTable | None = None
        has_scale = self.goal.max_drop is not None or self.goal.is_budget
        self._mixes = has_scale and not timed  # a limit on the drop, or on bytes, to mix by
        self.work = work_of(self.workspace.source.skeleton(), self.task)
        self._made = Trials(
            self.workspace, self.evaluator, self.goal, self.work, self._mixes, self.max_time_s
        )
        self.promised = 0.0

    @property
    def trials(self) -> list[Trial]:
        """What was tried, in order."""
        return self._made.tried

    def start(self) -> None:
        """Measure the original, if that hasn't been done, and say what it tells of the rest."""
        if self.work.done:
            return
        began, is_known = monotonic(), self.evaluator.is_known
        self.evaluator.start()
        self.work.did(self.work.evaluate, None if is_known else monotonic() - began)
        _log.info(self.evaluator.announcement())
        if self._mixes and self.task.is_text:
            minutes = self.work.left_s(self.effort) / 60
            _log.info("forecast: about %.1f min more, by what the original took", minutes)

    def use(self, ahead: Ahead | None) -> None:
        """Have workers try recipes ahead of the loop."""
        self._made.ahead = ahead

    def verdict(self, measurement: Measurement) -> str:
        """What keeps a candidate from the goal; empty if nothing does."""
        return self._made.verdict(measurement)

    def run(
        self, skeleton: nn.Module, pillars: Sequence[str], development: Sequence[CalibrationBatch]
    ) -> int:
        """Try recipes until the goal is met as well as they can, or time is up.

        Ladders go from the gentlest recipe to the boldest; one is left where recipes lose far more
        than the goal allows. Packed layers of several recipes are then mixed, and smaller
        architectures are packed. Under a latency goal
        nothing is mixed, formats slower than the unpacked layer drop out first, and the original
        takes part.

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
        self.start()
        found = self._ladders(skeleton, pillars)
        combines = self._mixes and {"quantize", "compress"} <= set(pillars)
        mixes = (LOOKS + MOST * combines) * self._mixes
        self.evaluator.looks = sum(map(len, found)) + mixes + 1  # a twin
        tunes = self.task.is_text and not self.stream
        mixing = Mixing(self._made, skeleton, development, tunes, self.effort)
        for recipes in found:
            if self._mixes and "quantize" in pillars:
                mixing.measure_levels(recipes, MIDDLE)
            else:
                self._descend(recipes)
        if self._mixes:
            mixing.run()
            self.table, self.promised = mixing.table, mixing.promised
        if combines:
            combine(self._made, skeleton)
        chosen = self._prefer_twin(self._made.best())
        if chosen is None:
            reasons = sorted({trial.error for trial in self.trials})
            raise TautenError(f"no recipe could be measured: {'; '.join(reasons)}")
        return chosen

    def _ladders(self, skeleton: nn.Module, pillars: Sequence[str]) -> list[Sequence[Recipe]]:
        mixes, coded = self._mixes, self.entropy_coding
        found: list[Sequence[Recipe]] = [
            [replace(recipe, entropy_coding=coded, apart=mixes) for recipe in recipes]
            for recipes in ladders(skeleton, self.workspace.structure, pillars, mixes)
        ]
        if self.goal.is_about_latency:
            self.guard = self._format_guard()
            found = [*(self.guard.fast(recipes) for recipes in found), [ORIGINAL]]
        return found

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
        self._made.expect(recipes)
        for recipe in track(recipes, "trying recipes", len(recipes)):
            if self._made.time_is_up():
                return
            trial = self._made.add(recipe)
            if trial.measurement is not None:
                hopeless = hopeless + 1 if self._made.is_hopeless(trial.measurement) else 0
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
        trial = self._made.measure(twins[0])
        self.trials.append(trial)
        kept = trial.measurement is not None and not self.verdict(trial.measurement)
        if kept and measurement.latency_s is not None and trial.measurement is not None:
            kept = latency_ratio(trial.measurement) < latency_ratio(measurement)
        return len(self.trials) - 1 if kept else best


def work_of(skeleton: nn.Module, task: Task) -> Work:
    """Counts the work of a search over a model."""
    weights = sum(parameter.numel() for parameter in skeleton.parameters())
    tokens = {**task.documents, **task.tokens}
    return Work(weights, tokens["development"], tokens["calibration"])
