"""Mixes: each unit of a model packed at a level of its own, to come as near to a goal as can be."""

from collections.abc import Sequence
from dataclasses import replace
from time import monotonic

import torch
from torch import Tensor, nn

from tauten.core.effort import Effort
from tauten.core.errors import first_line
from tauten.core.measurement import Measurement, Trial
from tauten.core.printing import logger
from tauten.core.progress import track
from tauten.core.recipe import Recipe, Step
from tauten.models.calibration import CalibrationBatch
from tauten.quantization import TuneScales
from tauten.search.candidate import Candidate
from tauten.search.levels import LevelTable, level_table
from tauten.search.proposals import MOST, Measured, Proposals, gained, is_better
from tauten.search.trials import Trials
from tauten.search.workspace import recipe_id

TUNING = TuneScales(rate=0.001)  # larger steps hurt what was packed in 4 bits and more
# Each block calibrated behind the packed ones before it; all scales trained. Both for no byte.
IN_SEQUENCE, TUNED = "in sequence", "tuned"
TUNED_FROM = 0.04  # KL of a mix: one that loses less, training has only harmed
REFINED = 2  # mixes that are refined, besides the best in both ways
LOOKS = MOST + REFINED + 2
# By how much refining is expected to divide a mix's loss, before it was tried.
EXPECTED = {IN_SEQUENCE: 1.1, TUNED: 1.3}
_log = logger(__name__)


class Mixing:
    """Measures levels on both sides of a goal, then mixes of them.

    Args:
        trials: Where they are tried; the goal limits the drop, or bytes.
        skeleton: Of the original.
        development: Data to judge layers on.
        tunes: A mix may be trained: it is a language model that fits into memory.
        effort: What a trial must promise.
    Attributes:
        table: What units take and lose at each level; None before it is known, or where it
            can't be.
        promised: Relative gain that was left for what it would take.
    """

    def __init__(
        self,
        trials: Trials,
        skeleton: nn.Module,
        development: Sequence[CalibrationBatch],
        tunes: bool,
        effort: Effort,
    ):
        self._effort, self.promised = effort, 0.0
        self._trials, self._skeleton, self._development = trials, skeleton, development
        self._tunes = tunes and trials.goal.max_drop is not None
        self.table: LevelTable | None = None
        self._candidates: list[Candidate] = []
        self._measured: list[Measured] = []

    def measure_levels(self, levels: Sequence[Recipe], middle: int) -> None:
        """Measure from the middle outwards, as far as mixes for the goal could use.

        Args:
            levels: Gentlest first.
            middle: Index of the one to begin with.
        """
        gentler = (levels[:middle][::-1], self._is_gentle_enough)
        bolder = (levels[middle + 1 :], self._is_bold_enough)
        # Whatever comes first should meet the goal, in case that time runs out.
        sides = (bolder, gentler) if self._trials.goal.is_budget else (gentler, bolder)
        self._trials.expect([levels[middle], *sides[0][0], *sides[1][0]])
        if not self._trials.time_is_up():
            self._trials.add(levels[middle])
        for recipes, is_enough in sides:
            for recipe in track(recipes, "trying levels", len(recipes)):
                if is_enough() or self._trials.time_is_up():
                    break
                self._trials.add(recipe)

    def run(self) -> None:
        """Mix the levels that were measured, then make the best mix lose less."""
        self._mix()
        best = _smallest(self._measured, self._trials)
        if best is None or self._is_budget:
            self._pack_in_sequence()
        else:
            self._refine(best)
            self._note_levels(best)

    def _note_levels(self, best: Measured) -> None:
        """Note what a level more on either side would probably gain, where they weren't packed."""
        if self.table is None or self._effort.far or self._trials.time_is_up():
            return
        loss = self.table.loss(best.chosen)
        sizes = [
            table.size(table.within_loss(loss)) for table in (self.table.extended(), self.table)
        ]
        self.promised += max(0.0, 1 - sizes[0] / sizes[1])

    def _levels(self) -> list[tuple[Recipe, Measurement]]:
        tried = ((t.recipe, t.measurement) for t in self._trials.tried)
        return [(recipe, m) for recipe, m in tried if m is not None and recipe.is_level]

    def _is_gentle_enough(self) -> bool:
        """Whether enough levels lose less than the goal allows, or take more bytes than it does."""
        if self._is_budget:
            gentle = [m for m in self._useful() if self._trials.verdict(m)]
        else:
            gentle = [m for _, m in self._levels() if not self._trials.verdict(m)]
        return len(gentle) >= self._effort.gentle

    def _is_bold_enough(self) -> bool:
        """Whether a level is beyond the goal, far beyond it where that is wanted.

        Of SmolLM2's 211 layers within 3%, none takes a second bold level.
        """
        if self._effort.far or self._is_budget:
            return any(map(self._trials.is_hopeless, self._useful()))
        return any(map(self._trials.verdict, self._useful()))

    def _useful(self) -> list[Measurement]:
        """Levels but those that lose as much as a smaller one."""
        measured = [m for _, m in self._levels()]
        return [m for m in measured if not any(is_better(other, m) for other in measured)]

    @property
    def _is_budget(self) -> bool:
        return self._trials.goal.is_budget

    def _mix(self) -> None:
        """Mix levels, each mix in view of what those before it came to."""
        levels = self._levels()
        if len(levels) < 2 or self._trials.time_is_up():
            return
        self._candidates = [self._trials.workspace.apply(recipe) for recipe, _ in levels]
        began, is_known = monotonic(), self._trials.workspace.journal.find("levels") is not None
        self.table = self._level_table([m.kl for _, m in levels])
        if self.table is None:
            return
        seconds = None if is_known else monotonic() - began
        self._trials.work.did(self._trials.work.judge(self._effort), seconds)
        units = len(self.table.units)
        for index, (_, measurement) in enumerate(levels):
            self._measured.append(Measured(torch.full((units,), index), measurement))
        proposals = Proposals(self.table, self._trials.goal)
        for _ in track(range(MOST), "mixing levels", MOST):
            chosen = proposals.next(self._measured)
            if chosen is None or not self._is_worth(chosen) or self._trials.time_is_up():
                break
            trial = self._add(chosen, self.table.recipe(chosen))
            if trial.measurement is None:
                break
            self._measured.append(Measured(chosen, trial.measurement))

    def _is_worth(self, chosen: Tensor) -> bool:
        """Whether a mix is worth an evaluation; as likely as not it keeps the goal."""
        best = _smallest(self._measured, self._trials)
        if best is None or self._is_budget:
            return True
        assert self.table is not None
        gain = 1 - self.table.size(chosen) / self.table.size(best.chosen)
        return self._pays(gain / 2, self._trials.work.evaluate)

    def _pays(self, gain: float, work: float) -> bool:
        """Whether an expected relative gain is worth work; one that isn't is noted."""
        if self._effort.is_worth(gain, work, self._trials.work.done):
            return True
        self.promised += max(0.0, gain)
        return False

    def _add(self, chosen: Tensor, recipe: Recipe, is_cut: bool = True) -> Trial:
        """Try a mix.

        Args:
            chosen: (units,) levels.
            recipe: Of them.
            is_cut: It is put together from the levels.
        """
        assert self.table is not None
        level_of = self.table.level_of(chosen).items()
        parents = {name: self._candidates[level] for name, level in level_of}
        return self._trials.add(recipe, self.table.loss(chosen), parents if is_cut else None)

    def _refine(self, best: Measured) -> None:
        """Make a mix lose less, in the way that gains most, and spend that on bolder mixes.

        Args:
            best: The smallest within the goal.
        """
        ways = [way for way in self._ways(best) if self._refining_pays(way, best.chosen)]
        found = [(way, self._try(way, best.chosen)) for way in ways]
        lost = best.measurement.quality.drop.high
        gains = [(lost / max(m.quality.drop.high, 1e-9), way, m) for way, m in found if m]
        gain, way, first = max(gains, key=lambda item: item[0], default=(1.0, "", None))
        if first is None or gain <= 1:
            return
        refined = [Measured(best.chosen, first)]
        expected = [gained(m, gain) for m in self._measured]
        for _ in track(range(REFINED), "refining mixes", REFINED):
            chosen = self._next_refined(refined, expected)
            measurement = None if chosen is None else self._try(way, chosen)
            if chosen is None or measurement is None:
                return
            refined.append(Measured(chosen, measurement))

    def _refining_pays(self, way: str, chosen: Tensor) -> bool:
        """Whether it pays to refine a mix, and then a bolder one."""
        assert self.table is not None
        bolder = self.table.within_loss(EXPECTED[way] * self.table.loss(chosen))
        gain = 1 - self.table.size(bolder) / self.table.size(chosen)
        recipe, is_cut = self._refined(way, chosen)
        return self._pays(gain, 2 * self._trials.work.of(recipe, is_cut))

    def _refined(self, way: str, chosen: Tensor) -> tuple[Recipe, bool]:
        """The recipe of a refined mix, and whether it is cut from the levels."""
        assert self.table is not None
        recipe = self.table.recipe(chosen)
        if way == TUNED:
            return replace(recipe, steps=(*recipe.steps, Step(TUNING))), True
        return replace(recipe, apart=False), False

    def _ways(self, mix: Measured) -> list[str]:
        """How a mix may come to lose less."""
        assert self.table is not None
        looks = any(s.technique.looks_at_inputs for s in self.table.recipe(mix.chosen).steps)
        tunes = self._tunes and (mix.measurement.kl or 0.0) >= TUNED_FROM
        return [IN_SEQUENCE] * looks + [TUNED] * tunes

    def _try(self, way: str, chosen: Tensor) -> Measurement | None:
        """Refine a mix; None if that fails, or time is up."""
        if self._trials.time_is_up():
            return None
        return self._add(chosen, *self._refined(way, chosen)).measurement

    def _next_refined(
        self, refined: Sequence[Measured], expected: Sequence[Measured]
    ) -> Tensor | None:
        """A mix that is likely to keep the goal once it is refined, smaller than those that did.

        Args:
            refined: What mixes came to.
            expected: What all that were measured would come to.
        """
        assert self.table is not None
        proposed = Proposals(self.table, self._trials.goal).next([*expected, *refined])
        known = _smallest(expected, self._trials)
        chosen = known.chosen if proposed is None and known else proposed
        again = chosen is not None and any(bool((m.chosen == chosen).all()) for m in refined)
        return None if again else chosen

    def _pack_in_sequence(self) -> None:
        """Try the best recipe with each block calibrated behind the packed ones before it."""
        best = self._trials.best()
        if best is None or self._trials.time_is_up():
            return
        recipe = replace(self._trials.tried[best].recipe, apart=False)
        looks = any(s.technique.looks_at_inputs for s in recipe.steps)
        gain = 1 - 1 / EXPECTED[IN_SEQUENCE]
        if looks and self._pays(gain, self._trials.work.of(recipe, False)):
            self._trials.add(recipe)

    def _level_table(self, kls: Sequence[float | None]) -> LevelTable | None:
        """The table of the candidates; None where a model's sensitivities can't be found."""
        workspace, skeleton = self._trials.workspace, self._skeleton
        source, structure = workspace.source, workspace.structure
        loader = source.loader(skeleton, structure.blocks) if source.reader else None
        data, made, journal = self._development, self._candidates, workspace.journal
        probe = self._kl_of if self._effort.probes else None
        try:
            return level_table(skeleton, structure, loader, data, made, kls, journal, probe)
        except RuntimeError as error:  # torch: something in it has no derivative
            reason = first_line(error)
            _log.warning("levels aren't mixed, as the model has no sensitivities: %s", reason)
            return None

    def _kl_of(self, level: int, names: Sequence[str]) -> float | None:
        """KL of some layers packed as at a level; journaled."""
        candidate, journal = self._candidates[level], self._trials.workspace.journal
        facts = {"of": recipe_id(candidate.recipe), "layers": list(names)}
        entry = journal.find("group", **facts)
        if entry is None:
            kl = self._trials.evaluator.partial_kl(candidate, names)
            journal.add("group", **facts, kl=kl)
            return kl
        found: float | None = entry["kl"]
        return found


def _smallest(measured: Sequence[Measured], trials: Trials) -> Measured | None:
    """The smallest mix or level within the goal."""
    kept = [m for m in measured if not trials.verdict(m.measurement)]
    return min(kept, key=lambda m: m.measurement.size_bytes, default=None)
