"""The command line as people use it."""

import errno
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from tauten.cli import app
from tauten.core.files import disk_error


def tauten(*arguments: object) -> Result:
    return CliRunner().invoke(app, [*map(str, arguments)])


@pytest.fixture(autouse=True)
def _in_tmp_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> Path:
    file = tmp_path_factory.mktemp("data") / "texts.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return file


def test_a_full_disk_is_said_with_the_remedy(
    llama_folder: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        refused = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "optimized.partial/block")
        raise disk_error("optimized.partial", refused)

    with monkeypatch.context() as patch:
        patch.setattr("tauten.search.workspace.Workspace.apply", full)
        done = tauten("optimize", llama_folder, "--data", data, "--max-tokens", 800)
    assert done.exit_code == 2
    words = " ".join(done.output.split())
    assert "optimized.partial/block: the disk is full; free some, then the same command" in words
    assert Path("optimized.partial/journal.jsonl").exists(), "the same command goes on from it"


def test_optimize_then_use_what_came_out(
    llama_folder: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ("--data", data, "--max-drop", "5%", "--max-tokens", 800, "-o", "out")
    command = [sys.executable, "-m", "tauten", "optimize", llama_folder, *map(str, options)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert "certified" in run.stdout.lower() and "tauten run out" in run.stdout
    assert "forecast: about" in run.stderr
    timing = json.loads((tmp_path / "out/timing.json").read_text())
    for name in ("original", "chosen"):
        assert timing[name]["rss_bytes"] > 50e6 and timing[name]["median_s"] > 0

    done = tauten("eval", "out", "--reference", llama_folder, "--data", data)
    assert done.exit_code == 0 and "KL to the original" in done.stdout, done.stderr
    (tmp_path / "few.txt").write_text("Two short documents. " * 9 + "\n\n" + "Another one. " * 9)
    done = tauten("eval", "out", "--reference", llama_folder, "--data", tmp_path / "few.txt")
    assert done.exit_code == 0 and "perplexity" in done.stdout, done.stderr
    done = tauten("run", "out", "The number", "--max-new-tokens", 5)
    assert done.exit_code == 0 and done.stdout.startswith("The number"), done.stderr
    done = tauten("bench", "out", "--reference", llama_folder, "--rounds", 1)
    assert done.exit_code == 0 and "tokens/s" in done.stdout, done.stderr
    monkeypatch.setattr("tauten.evaluation.formats.MOST_COPIES", 1)
    done = tauten("bench", "out", "--layers", "--rounds", 1)
    assert done.exit_code == 0, done.stderr
    for word in ("Linear 96 x 64", "unpacked", "128 rows", "3 bits, group 64, int8", "codebook 2"):
        assert word in done.stdout, word
    (tmp_path / "out/report.html").unlink()
    assert tauten("report", "out").exit_code == 0
    assert "<html" in (tmp_path / "out/report.html").read_text()
    done = tauten("apply", "out/recipe.yaml", llama_folder, "--data", data, "-o", "again")
    assert done.exit_code == 0, done.stderr
    first, second = (tmp_path / d / "model.safetensors" for d in ("out", "again"))
    assert first.read_bytes() == second.read_bytes()


def test_quantize_and_inspect(llama_folder: Path, tmp_path: Path) -> None:
    done = tauten("quantize", llama_folder, "--bits", 4, "-o", "out")
    assert done.exit_code == 0 and "not measured" in done.stdout, done.stderr
    counts = []
    for model, share in ((llama_folder, "100% of the weights can be"), ("out", "100% of the")):
        done = tauten("inspect", model)
        assert done.exit_code == 0 and "LlamaForCausalLM" in done.stdout, done.stderr
        assert share in done.stdout and "gate_proj, up_proj" in done.stdout
        counts.append(re.search(r"(\S+) parameters, .*, (.+)", done.stdout).groups())
    assert counts[0] == counts[1]  # packed or not: as many parameters, blocks and units


def test_compress_takes_a_technique_its_knobs_and_data(
    llama_folder: Path, data: Path, tmp_path: Path
) -> None:
    done = tauten("compress", llama_folder, "--knob", "bits=2", "--data", data, "-o", "out")
    assert done.exit_code == 0, done.stderr
    assert "bits: 2" in (tmp_path / "out/recipe.yaml").read_text()
    for wrong, message in (
        (("--technique", "nonsense"), "technique 'nonsense': compress has"),
        (("--knob", "bits"), "--knob bits: expected name=value"),
        (("--knob", "colour=red"), "has no knob 'colour'"),
        (("--knob", "max_error=1.5e1"), "max_error=15.0"),
        (("--knob", "max_error=2e0"), "max_error=2.0"),
        (("--teacher", llama_folder), "imitates no model"),
    ):
        done = tauten("compress", llama_folder, *wrong, "-o", "other")
        assert done.exit_code == 2 and message in " ".join(done.stderr.split()), done.stderr


def test_entropy_coding_is_smaller_and_replays(llama_folder: Path, tmp_path: Path) -> None:
    quantize = ("quantize", llama_folder, "--bits", 8, "-o")
    done = [
        tauten(*quantize, "plain"),
        tauten(*quantize, "coded", "--entropy-coding"),
        tauten("apply", "coded/recipe.yaml", llama_folder, "-o", "again"),
    ]
    assert all(run.exit_code == 0 for run in done), done
    plain, coded, again = (
        (tmp_path / name / "model.safetensors").read_bytes() for name in ("plain", "coded", "again")
    )
    assert len(coded) < len(plain) and again == coded


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("inspect", "/no/such"), "no such file or folder"),
        (("optimize", "MODEL", "--max-drop", "lots"), "isn't a ratio"),
        (("optimize", "MODEL", "--max-size", "0MB"), "no model can meet it"),
        (("optimize", "MODEL", "--minimize", "noise"), "expected one of size"),
        (("optimize", "MODEL", "--max-memory", "1MB"), "needs about"),
        (("optimize", "MODEL", "--data", "missing.txt"), "no such file or folder"),
        (("report", "MODEL"), "pass a folder that Tauten wrote"),
        (("quantize", "MODEL", "-o", "taken"), "exists"),
        (("quantize", "MODEL", "-o", "."), "exists"),
        (("quantize", "MODEL", "--workers", "0", "-o", "new"), "workers=0"),
        (("quantize", "MODEL", "--bits", "8", "--technique", "binary", "-o", "new"), "has 1 bits"),
        (("compress", "MODEL", "--technique", "prune_depth", "-o", "new"), "pass data"),
        (("quantize", "os.path:join", "-o", "new"), "os.path:join raised TypeError"),
        (("optimize", "MODEL", "--max-drop", "2"), "write 2% or"),
        (("optimize", "MODEL", "--max-drop", "1 points more"), "0.5 points or 0.02 absolute"),
        (("apply", "MODEL/config.json", "MODEL"), "config.json: recipe: steps is missing"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    llama_folder: Path, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    (tmp_path / "taken").mkdir()
    before = sorted(tmp_path.iterdir())
    words = [word.replace("MODEL", str(llama_folder)) for word in arguments]
    done = tauten(*words)
    assert done.exit_code == 2
    assert "Traceback" not in done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ") and message in last
    assert sorted(tmp_path.iterdir()) == before, "something was left behind"
