"""`tauten parallelize` and `tauten bench --plan` as people use them."""

from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from tauten.cli import app
from tauten.parallel.plan import Plan


@pytest.fixture(autouse=True)
def _quick_and_in_tmp_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tauten.parallel.profile._REPEAT_S", 1e-9)


def tauten(*arguments: object) -> Result:
    return CliRunner().invoke(app, [*map(str, arguments)])


def test_a_plan_is_printed_written_and_timed_again(llama_folder: Path) -> None:
    wanted = ("--workers", 2, "--batch", 4, "--length", 12, "--mode", "data")
    done = tauten("parallelize", llama_folder, *wanted)
    assert done.exit_code == 0, done.output
    for word in ("one worker", "data 2", "predicted", "measured", "equal", "plan.json"):
        assert word in done.stdout, word
    plan = Plan.read("plan.json")
    assert plan.rows == 4 and plan.model == str(llama_folder)
    assert all(o.measured_s and o.predicted_s > 0 for o in plan.options) and plan.reason
    done = tauten("bench", "--plan", "plan.json", "--rounds", 1)
    assert done.exit_code == 0 and "rows/s" in done.stdout, done.output
    assert "largest relative difference of outputs: 0" in done.stdout


def test_other_models_need_the_size_of_a_row() -> None:
    name = "tiny_models:tiny_mlp"
    done = tauten("parallelize", name, "--workers", 2, "--shape", 10, "--mode", "data", "-o", "p")
    assert done.exit_code == 0 and Plan.read("p").inputs["args"][0]["shape"] == [8, 10], done.output
    for wrong, message in (
        ((name,), "pass --shape"),
        ((name, "--shape", "3,4"), "expected sizes such as"),
        ((name, "--shape", 10, "--workers", "many"), "--workers many"),
        ((name, "--shape", 11), "mat1 and mat2 shapes"),
    ):
        done = tauten("parallelize", *wrong)
        assert done.exit_code == 2 and message in " ".join(done.stderr.split()), done.output
    done = tauten("bench")
    assert done.exit_code == 2 and "pass a model, or --plan" in done.stderr
