"""What the steps of a search take, and when this machine will be through with them.

Work is counted in seconds of a nominal machine, from sizes alone: whether a trial is worth its work
mustn't depend on what else a machine does, or a run that goes on after a kill would end with other
bytes. How long a nominal second takes here is measured while the search runs.
"""

from tauten.core.effort import Effort
from tauten.core.recipe import Recipe
from tauten.search.forecast import operations_per_s

# Measured on two cores with AVX2, which multiply so many numbers a second.
NOMINAL_FLOPS = 2e11
USED = 0.75  # share of it that a model's forward pass gets
PACKED_WEIGHTS = 5.6e6  # a second, at one level of K-quants
OBSERVING = 1.6  # times a forward pass: second moments of all inputs come on top
JUDGING = 1.0  # times an evaluation: gradients
PROBING = 2.0  # times an evaluation: divergences of groups of layers
TRAINING = 5.0  # times a forward pass: the teacher's, the student's there and back
CERTIFYING = 3.0  # times an evaluation: the original, and the packed model as it is served
CLOSING_S = 20.0  # timing, two fresh processes, files
LEVELS, MIXES = 2, 1  # that a search takes, usually
MORE_LEVELS, MORE_MIXES, REFINED = 4, 5, 3  # one that is thorough


class Work:
    """Counts the work of one search, and times it.

    Args:
        weights: Of the model.
        tokens: Tokens (or examples) of one evaluation.
        calibration_tokens: That layers are calibrated on.
    Attributes:
        evaluate: Work of one evaluation, in nominal seconds.
        done: Work so far, also what a journal already held.
    """

    def __init__(self, weights: int, tokens: int, calibration_tokens: int):
        a_token = 2 * weights / (USED * NOMINAL_FLOPS)
        self.evaluate = a_token * tokens
        self._observe = OBSERVING * a_token * calibration_tokens
        self._tune = TRAINING * a_token * calibration_tokens
        self._pack = weights / PACKED_WEIGHTS
        self._has_observed = False
        self.done = self._timed = self._timed_s = 0.0

    def judge(self, effort: Effort) -> float:
        """Work of finding out what each layer loses at each level."""
        return (JUDGING + PROBING * effort.probes) * self.evaluate

    def of(self, recipe: Recipe, is_cut: bool) -> float:
        """Work of a trial.

        Args:
            recipe: That is tried.
            is_cut: From candidates that are packed already.
        """
        work = self.evaluate + self._tune * bool(recipe.tunings)
        if is_cut:
            return work
        looks = any(step.technique.looks_at_inputs for step in recipe.steps)
        observes = looks and not (recipe.apart and self._has_observed)
        return work + self._pack + self._observe * observes

    def did(self, work: float, seconds: float | None, recipe: Recipe | None = None) -> None:
        """Count what was done.

        Args:
            work: Of it.
            seconds: That it took; None for what the journal held.
            recipe: That was tried.
        """
        self.done += work
        if recipe is not None and recipe.apart:
            self._has_observed = True
        if seconds is not None:
            self._timed += work
            self._timed_s += seconds

    @property
    def pace(self) -> float:
        """Seconds here of a nominal one: as measured, before that by a probing product."""
        if not self._timed:
            return NOMINAL_FLOPS / operations_per_s()
        return self._timed_s / self._timed

    def total(self, effort: Effort) -> float:
        """Work that a search for mixes usually takes, the certificate included."""
        levels, mixes = (MORE_LEVELS, MORE_MIXES) if effort.far else (LEVELS, MIXES)
        refined = REFINED * (self._observe + self._pack + self.evaluate) * effort.far
        packed = self._observe + levels * (self._pack + self.evaluate)
        mixed = self.evaluate + self.judge(effort) + mixes * self.evaluate
        return packed + mixed + refined + CERTIFYING * self.evaluate

    @property
    def closing_s(self) -> float:
        """Seconds from the last trial to the end."""
        return CERTIFYING * self.evaluate * self.pace + CLOSING_S

    def left_s(self, effort: Effort) -> float:
        """Seconds until the end of a search that takes as much as is usual."""
        trials = self.total(effort) - self.done - CERTIFYING * self.evaluate
        return max(0.0, trials) * self.pace + self.closing_s
