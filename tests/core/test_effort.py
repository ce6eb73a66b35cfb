"""What a trial must promise grows with its work, and falls with what was done before."""

import pytest

from tauten.core.effort import NORMAL, QUICK, THOROUGH, effort_named
from tauten.core.errors import InputError


def test_a_trial_is_worth_its_work_by_its_share_of_what_was_done() -> None:
    assert NORMAL.is_worth(gain=0.0301, work=10, done=50)
    assert not NORMAL.is_worth(gain=0.0299, work=10, done=50)
    assert NORMAL.is_worth(gain=0.0299, work=10, done=51)
    assert not QUICK.is_worth(gain=0.0301, work=10, done=50)


def test_a_thorough_search_leaves_only_what_gains_nothing() -> None:
    assert THOROUGH.is_worth(gain=1e-9, work=1e9, done=1)
    assert not THOROUGH.is_worth(gain=0.0, work=1, done=1e9)


def test_an_unknown_effort_is_refused_with_those_there_are() -> None:
    with pytest.raises(InputError, match="effort='much': expected one of quick, normal, thorough"):
        effort_named("much")
