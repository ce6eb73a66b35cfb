"""Work is counted from sizes, and timed where it is done."""

from dataclasses import replace

import pytest

from tauten.core.effort import NORMAL, THOROUGH
from tauten.core.recipe import Recipe, Step
from tauten.quantization import RTN, KQuant, TuneScales
from tauten.search.work import CLOSING_S, Work

LEVEL = replace(Recipe.of(KQuant(4)), apart=True)


def work() -> Work:
    return Work(10**8, tokens=8192, calibration_tokens=8192)


def test_layers_are_observed_for_the_first_level_alone() -> None:
    made = work()
    first = made.of(LEVEL, is_cut=False)
    made.did(first, 1.0, LEVEL)
    second = made.of(LEVEL, is_cut=False)
    assert first - second == pytest.approx(1.6 * made.evaluate)
    assert made.of(replace(LEVEL, apart=False), is_cut=False) == pytest.approx(first)
    assert made.of(Recipe.of(RTN(4)), is_cut=False) == pytest.approx(second), "it looks at nothing"


def test_a_mix_takes_an_evaluation_and_training_more() -> None:
    made = work()
    tuned = Recipe((*LEVEL.steps, Step(TuneScales())))
    assert made.of(LEVEL, is_cut=True) == made.evaluate
    assert made.of(tuned, is_cut=True) == pytest.approx(6 * made.evaluate)


def test_what_the_journal_held_counts_as_work_but_not_as_time() -> None:
    made, resumed = work(), work()
    made.did(10.0, 20.0)
    resumed.did(10.0, None)
    assert made.done == resumed.done == 10.0
    assert made.pace == 2.0
    resumed.did(5.0, 15.0)
    assert resumed.pace == 3.0


def test_what_is_left_is_told_at_the_pace_so_far() -> None:
    made = work()
    total = made.total(NORMAL)
    assert made.total(THOROUGH) > 1.5 * total
    made.did(total / 2, total)
    assert made.left_s(NORMAL) == pytest.approx(total + CLOSING_S)
    made.did(total, total)
    assert made.left_s(NORMAL) > CLOSING_S, "the certificate is still to come"
