"""What a search comes to: its choice on data that nothing was chosen on, and why that choice."""

import math

from tauten.core.errors import ENDING, told
from tauten.core.figures import format_loss, loss_word, plural
from tauten.core.goal import Goal
from tauten.core.measurement import Drop, Measurement, Quality, Result, Trial
from tauten.evaluation.statistics import FEWEST_UNITS, more_examples
from tauten.search.candidate import Candidate
from tauten.search.loop import Search


def conclude(search: Search, chosen: int, candidate: Candidate, slow: bool) -> Result:
    """Look at the sealed test split, once, and say what was chosen and why.

    Args:
        search: What was tried.
        chosen: Index of the trial.
        candidate: Of the trial.
        slow: It stands in for a recipe that was slower than the original when it was timed again.
    """
    trial, limit = search.trials[chosen], search.goal.max_drop
    assert trial.measurement is not None
    missed = search.verdict(trial.measurement)
    try:
        test = search.evaluator.certify(candidate)
    except ENDING:
        raise
    except Exception as error:  # of a user's metric, too: what was found isn't lost
        reason = f"{_reason(search, trial, missed, slow)}; not certified: {told(error)}"
        return Result(None, trial.recipe, False, reason, search.trials, candidate.layers, None)
    enough = min(q.drop.examples for q in (test, trial.measurement.quality)) >= FEWEST_UNITS
    enough = enough and (limit is None or search.evaluator.ruined > limit)
    certified = limit is not None and not missed and enough and test.drop.high <= limit
    reason = _reason(search, trial, missed, slow)
    if certified:
        reason += f"; certified on {plural(test.drop.examples, f'independent {test.counted}')}"
    elif limit is not None:
        reason += f"; not certified: {_shortfall(search, trial.measurement.quality, test, limit)}"
    return Result(None, trial.recipe, certified, reason, search.trials, candidate.layers, test)


def _shortfall(search: Search, development: Quality, test: Quality, limit: float) -> str:
    """What the certificate lacks: documents, or quality."""
    least = min(test, development, key=lambda quality: quality.drop.examples)
    if least.drop.examples < FEWEST_UNITS:
        few = f"{plural(least.drop.examples, least.counted)} in a split are too few"
        return few + "; return one number an example" * (least.counted == "batch")
    if search.evaluator.ruined <= limit:
        return "a model of which all weights changed places would be within the goal too"
    found = test if test.drop.high > limit else development
    split = "the sealed test split" if found is test else "the development split"
    if found.drop.high <= limit:
        return "another limit is missed"
    high, wanted = (format_loss(v, found.drop.unit) for v in (found.drop.high, limit))
    word = loss_word(found.higher_is_better)
    text = f"on {split} the {word} may be {high}, above {wanted}"
    return text + documents_needed(found.drop, limit, found.counted)


def documents_needed(drop: Drop, limit: float, noun: str = "document") -> str:
    """How many more examples would bring a bound within a limit, as a clause; perhaps empty."""
    more = more_examples(drop, limit)
    return f"; it needs {plural(more, f'more {noun}')} like these there" if more else ""


def _reason(search: Search, trial: Trial, missed: str, slow: bool) -> str:
    """Why a trial was chosen."""
    if trial.recipe.steps and missed:
        text = f"no recipe met the goal; this is the nearest miss: {missed}"
        return text + relaxations(search.goal, _measured(search))
    if not trial.recipe.steps:
        why = "no recipe within the goal is faster than it"
        if slow:
            why = "the recipe chosen was slower than it when both were timed again"
        return f"the original is kept: {why}{f'; it misses the goal: {missed}' if missed else ''}"
    within = sum(1 for measurement in _measured(search) if not search.verdict(measurement))
    least = "drop" if search.goal.is_budget else search.goal.minimize
    return f"least {least} of the {within} recipes within the goal, of {len(search.trials)} tried"


def _measured(search: Search) -> list[Measurement]:
    return [trial.measurement for trial in search.trials if trial.measurement is not None]


def relaxations(goal: Goal, measured: list[Measurement]) -> str:
    """By how much any one limit must give way for a recipe that was tried, as a clause."""
    found = []
    for name, value in goal.limits.items():
        others = {other: limit for other, limit in goal.limits.items() if other != name}
        within = [m for m in measured if all(m.cost(o) <= limit for o, limit in others.items())]
        least = min((m.cost(name) for m in within), default=math.inf)
        if value < least < math.inf:
            shown = _shown(name, least)
            has_unit = name == "max_drop" and goal.drop_unit
            found.append(f"{name}='{shown} {goal.drop_unit}'" if has_unit else f"{name}={shown}")
    return f"; {' or '.join(found)} would be met" if found else ""


def _shown(name: str, value: float) -> str:
    whole = name in ("max_size_bytes", "max_memory_bytes")
    return str(int(value)) if whole else f"{math.ceil(value * 1e5) / 1e5:g}"  # not less than it
