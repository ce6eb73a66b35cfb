"""A stopped run is called again with something changed: no figure of the old call stays."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tauten
from tauten.core.errors import BusyError
from tauten.core.journal import read_entries
from tauten.search import resume, run
from tauten.search.trials import Trials

X = torch.randn(600, 16, generator=torch.manual_seed(0))
torch.manual_seed(1)
MODEL = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 4)).eval().requires_grad_(False)
Y = MODEL(X).argmax(1)
DATA = list(zip(X.split(50), Y.split(50), strict=True))
GOAL = tauten.Goal(max_drop=0.1)


def scorer(packed: float) -> Callable[..., Tensor]:
    """Scores packed models alike."""

    def score(model: nn.Module, batch: Any) -> Tensor:
        return torch.full((len(batch[0]),), packed if "Packed" in repr(model) else 1.0)

    return score


def stopped(out: Path) -> list[dict[str, Any]]:
    """What the journal holds of a run that was stopped, as by Ctrl-C, at its third trial."""
    add = Trials.add

    def add_two(trials: Trials, *args: Any) -> Any:
        if len(trials.tried) == 2:
            raise KeyboardInterrupt
        return add(trials, *args)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Trials, "add", add_two)
        tauten.optimize(MODEL, DATA, GOAL, metric=scorer(0.95), out=out)
    return read_entries(journal_of(out))[0]


def journal_of(out: Path) -> Path:
    return out.with_name(f"{out.name}.partial") / "journal.jsonl"


def values(result: tauten.Result) -> set[float]:
    return {round(t.measurement.quality.value, 6) for t in result.trials if t.measurement}


def test_another_metric_is_measured_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    held = stopped(tmp_path / "out")
    assert sum(entry["event"] == "trial" for entry in held) == 2
    again = tauten.optimize(MODEL, DATA, GOAL, metric=scorer(0.6), out=tmp_path / "out")
    assert values(again) == {0.6}
    assert "another metric than when the run was stopped" in caplog.text
    fresh = tauten.optimize(MODEL, DATA, GOAL, metric=scorer(0.6), out=tmp_path / "fresh")
    assert again.recipe == fresh.recipe and again.reason == fresh.reason


def test_the_same_call_goes_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    stopped(tmp_path / "out")
    result = tauten.optimize(MODEL, DATA, GOAL, metric=scorer(0.95), out=tmp_path / "out")
    assert values(result) == {0.95}
    assert "than when the run was stopped" not in caplog.text


CHANGES: dict[str, tuple[Any, tauten.Goal]] = {
    "data": ([(x + 1, y) for x, y in DATA], GOAL),
    "goal": (DATA, tauten.Goal(max_drop=0.2)),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_other_data_or_another_goal_end_as_a_fresh_run(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stopped(tmp_path / "out")
    results = [
        tauten.optimize(MODEL, data, goal, metric=scorer(0.95), out=tmp_path / name)
        for name in ("out", "fresh")
        for data, goal in [CHANGES[kind]]
    ]
    assert f"another {kind}" in caplog.text
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("out", "fresh")]
    assert weights[0] == weights[1] and results[0].reason == results[1].reason
    verdicts = [[trial.verdict for trial in result.trials] for result in results]
    assert verdicts[0] == verdicts[1]


def test_other_versions_leave_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stopped(tmp_path / "out")
    inside = journal_of(tmp_path / "out").parent
    kept = [path for path in inside.iterdir() if path.is_dir()]
    (kept[0] / "of_old").touch()
    monkeypatch.setattr(run, "VERSIONS", f"{resume.VERSIONS}, other")
    stopped(tmp_path / "out")
    assert not (kept[0] / "of_old").exists()


def test_another_model_is_refused_and_what_was_made_stays(tmp_path: Path) -> None:
    stopped(tmp_path / "out")
    before = journal_of(tmp_path / "out").read_bytes()
    other = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4)).eval()
    with pytest.raises(BusyError, match="another source"):
        tauten.optimize(other, DATA, GOAL, metric=scorer(0.95), out=tmp_path / "out")
    assert journal_of(tmp_path / "out").read_bytes() == before
