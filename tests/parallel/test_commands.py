"""`tauten parallelize` and `tauten bench --plan` as people use them."""

from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from tauten.cli import app
from tauten.core.errors import InputError
from tauten.parallel.plan import Layout, Plan


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
    assert all(option.predicted_s > 0 for option in plan.options) and plan.reason
    assert plan.options[0].measured_s  # on a busy machine time may be short for the others
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


def test_a_plan_runs_no_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "evil.py").write_text("open('ran', 'w')\ndef model(): raise SystemExit\n")
    monkeypatch.syspath_prepend(tmp_path)
    Plan("evil:model", "latency", 1, {}, Layout()).save("plan.json")
    done = tauten("bench", "--plan", "plan.json")
    said = " ".join(done.stderr.split())
    assert done.exit_code == 2 and "names the function evil:model, and no file has code run" in said
    assert "tauten bench evil:model --plan plan.json" in said and not Path("ran").exists()
    done = tauten("bench", "tiny_models:tiny_mlp", "--plan", "plan.json")
    assert "the plan wasn't measured" in done.stderr


def test_a_plan_is_not_written_through_a_link(tmp_path: Path) -> None:
    Path("plan.json").symlink_to(tmp_path / "victim")
    with pytest.raises(InputError, match=r"plan\.json is a symbolic link"):
        Plan("m", "latency", 1, {}, Layout()).save("plan.json")
    assert not (tmp_path / "victim").exists()
