"""Commands for many machines, and what the command line prints of a cluster."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import tauten
from tauten.cli import app
from tauten.core.errors import InputError
from tauten.distributed.engine import Answered, Joined, Lost
from tauten.distributed.launch import plan_launch
from tauten.distributed.status import Report, reports


def test_torchrun_knows_which_machine_is_the_host() -> None:
    """Only the machine at the rendezvous is its host; the others would time out."""
    made = plan_launch("2:3", ["train.py", "--lr", "1"], "lo", "127.0.0.1:29600", 4)
    assert "--rdzv-conf=is_host=1,join_timeout=300" in made.command
    assert "--local-addr=127.0.0.1" in made.command
    assert {"--nnodes=2:3", "--nproc-per-node=4", "--max-restarts=3"} <= set(made.command)
    assert made.command[-3:] == ("train.py", "--lr", "1")
    assert made.environment["GLOO_SOCKET_IFNAME"] == made.environment["NCCL_SOCKET_IFNAME"] == "lo"
    other = plan_launch("2", ["train.py"], "lo", "10.0.0.9")
    assert "--rdzv-conf=is_host=0,join_timeout=300" in other.command
    assert "--rdzv-endpoint=10.0.0.9:29500" in other.command


def test_a_ray_job_runs_with_a_token() -> None:
    made = plan_launch("http://head:8265", ["optimize", "m"], token=Path("/t"))
    assert made.command[:6] == ("ray", "job", "submit", "--address", "http://head:8265", "--")
    assert made.command[6:] == ("tauten", "optimize", "m", "--workers", "auto")
    assert made.environment["RAY_AUTH_MODE"] == "token"
    assert made.environment["RAY_AUTH_TOKEN_PATH"] == "/t"


@pytest.mark.parametrize(
    ("nodes", "arguments", "problem"),
    [
        ("2", [], "launch what"),
        ("2", ["optimize", "m"], "is for scripts"),
        ("2", ["train.py"], "need --rendezvous"),
        ("http://head", ["train.py"], "these run: optimize, quantize, compress, apply"),
        ("missing", ["optimize", "m"], "hosts file missing"),
    ],
)
def test_what_does_not_go_together_is_refused(
    nodes: str, arguments: list[str], problem: str
) -> None:
    with pytest.raises(InputError, match=problem):
        plan_launch(nodes, arguments)


def test_the_command_line_prints_what_it_would_run(tmp_path: Path) -> None:
    hosts = tmp_path / "hosts"
    hosts.write_text("node1\n")
    options = ["launch", "--nodes", str(hosts), "--interface", "lo", "--dry-run"]
    ended = CliRunner().invoke(app, [*options, "optimize", "m", "--max-drop", "2%"])
    assert ended.exit_code == 0, ended.output
    assert "TAUTEN_INTERFACE=lo" in ended.output
    assert f"-m tauten optimize m --max-drop 2% --workers {hosts}" in ended.output
    hosts.write_text("node1 slots=none\n")
    ended = CliRunner().invoke(app, [*options, "optimize", "m"])
    assert ended.exit_code == 2
    assert "hosts:1:" in ended.output.replace("\n", "")


def test_a_missing_worker_is_reported_with_its_reason() -> None:
    class Two:
        size, is_hopeless = 2, False

        def __init__(self) -> None:
            self.events = [Joined("a"), Lost("b", "no route to host")]

        def load(self, job: object) -> None: ...

        def submit(self, worker: str, id: str, payload: object) -> None:
            self.events.append(Answered(worker, id, Report()(payload)))

        def wait(self, timeout_s: float) -> list[object]:
            events, self.events = self.events, []
            return events

    found = reports(Two())  # type: ignore[arg-type]
    assert found["a"]["cores"] >= 1
    assert found["b"] == {"error": "no route to host"}


DISTILLING = """
import os, signal, sys
import tauten
from tauten.models import training

training.CHECKPOINT_S = 0.0
step = training.Training._step

def killed(self, rate):
    step(self, rate)
    killed.steps += 1
    if os.environ["TORCHELASTIC_RESTART_COUNT"] == "0" and killed.steps == 3:
        os.kill(os.getpid(), signal.SIGKILL)

killed.steps = 0
training.Training._step = killed
model, out, *texts = sys.argv[1:]
recipe = tauten.Recipe.of(tauten.PruneDepth(0.5), tauten.Distill(steps=5, batch_tokens=64))
tauten.compress(model, technique=recipe, data=texts, out=out)
print("steps", killed.steps)
"""


def test_training_goes_on_from_its_checkpoint_when_torchrun_restarts_it(
    tmp_path: Path, llama_folder: Path, texts: list[str]
) -> None:
    script, out = tmp_path / "distil.py", tmp_path / "restarted"
    script.write_text(DISTILLING)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node=1", "--max-restarts=3", "--monitor-interval=0.1", str(script)]
    environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    done = subprocess.run(
        [*command, str(llama_folder), str(out), *texts],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "steps 3" in done.stdout, "two of five were kept before the kill"
    recipe = tauten.Recipe.of(tauten.PruneDepth(0.5), tauten.Distill(steps=5, batch_tokens=64))
    tauten.compress(str(llama_folder), technique=recipe, data=texts, out=tmp_path / "whole")
    ours, whole = (
        (place / "model.safetensors").read_bytes() for place in (out, tmp_path / "whole")
    )
    assert ours == whole


@pytest.mark.parametrize("cluster", ["none.txt", 3])
def test_a_cluster_that_is_none_is_refused_before_the_model_is(cluster: object) -> None:
    calls = [
        lambda: tauten.distribute(torch.nn.Linear(8, 8), cluster=cluster),
        lambda: tauten.distribute(torch.nn.Linear(8, 8), cluster=cluster, mode="auto"),
    ]
    for call in calls:
        with pytest.raises(InputError, match=f"cluster={cluster!r}.*pass a hosts file"):
            call()
