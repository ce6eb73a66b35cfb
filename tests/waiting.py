"""Waiting for what other processes and threads do."""

import time
from collections.abc import Callable

LIMIT_S = 300.0  # only ends a test that would hang: a busy machine takes its time


def until(condition: Callable[[], object]) -> None:
    """Return once a condition holds."""
    deadline = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.01)
