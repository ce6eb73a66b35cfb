"""Where there is no terminal, the log says how far all work is."""

import logging
import time

import pytest

from tauten.core import progress


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(progress, "LINE_S", 0.01)
    caplog.set_level(logging.INFO, "tauten")


def wait_for(text: str, caplog: pytest.LogCaptureFixture) -> None:
    """Return once the log has a line that ends so."""
    for _ in range(1000):
        if any(message.endswith(text) for message in caplog.messages):
            return
        time.sleep(0.01)
    raise AssertionError(f"no line ends with {text!r}: {caplog.messages[-3:]}")


@pytest.mark.usefixtures("often")
def test_lines_tell_all_work_and_the_best_so_far(caplog: pytest.LogCaptureFixture) -> None:
    with progress.progress_bars():
        for level in progress.track(range(2), "levels", 2):
            for block in progress.track(range(3), "blocks", 3):
                if (level, block) == (1, 2):
                    wait_for("; levels 1/2; blocks 2/3", caplog)
        progress.show_best("best so far: 89.4 MB")
        with progress.progress_bar("training", 10) as show:
            show(4, "loss 0.2")
            wait_for("; training, loss 0.2 4/10; best so far: 89.4 MB", caplog)
        wait_for(" s; best so far: 89.4 MB", caplog)


@pytest.mark.usefixtures("often")
def test_no_line_comes_after_the_end(caplog: pytest.LogCaptureFixture) -> None:
    with progress.progress_bars():
        wait_for(" s", caplog)
    caplog.clear()
    time.sleep(0.05)
    assert list(progress.track([1], "levels", 1)) == [1]
    assert not caplog.messages
