"""Workers that die, models that can't be sent, and what is left after the end of a process."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from faulty_models import Dies, Slow
from parallel_layouts import laid_out
from tiny_models import tiny_llama
from torch import nn
from waiting import until

import tauten
from tauten.core.errors import InputError, WorkerError
from tauten.distributed.cluster import Cluster
from tauten.distributed.job import Job
from tauten.distributed.own_engine import OwnEngine
from tauten.parallel.launcher import Launcher
from tauten.parallel.plan import Layout

TWO = Layout(data=2)
ENDS_TWICE = """
import signal, tauten, torch, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
from torch import nn
from tauten.parallel.plan import Layout, Plan
plan = Plan("", "throughput", 0, {}, Layout(tensor=2))
model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
try:
    with tauten.parallelize(model, plan=plan) as parallel:
        print(*parallel.worker_pids, flush=True)
        time.sleep(60)
except KeyboardInterrupt:
    print("interrupted", flush=True)
parallel = tauten.parallelize(model, plan=plan)
from tauten.parallel.launcher import the_launcher
print(*parallel.worker_pids, the_launcher().pid, the_launcher().folder, flush=True)
time.sleep(60)
"""


def is_gone(pid: int) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return "\nState:\tZ" in Path(f"/proc/{pid}/status").read_text()
    return True


def run_python(*arguments: str | Path) -> Any:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, *arguments], env=environment, **pipes)


def test_the_work_of_a_worker_killed_amid_a_batch_is_done_again(tmp_path: Path) -> None:
    x = torch.arange(10.0)[:, None]
    with laid_out(Slow(tmp_path), TWO) as parallel:
        victim = parallel.worker_pids[1]

        def kill() -> None:
            until((tmp_path / str(victim)).exists)
            os.kill(victim, signal.SIGKILL)

        killer = threading.Thread(target=kill)
        killer.start()
        assert torch.equal(parallel(x), 2 * x)
        killer.join()
        assert victim not in parallel.worker_pids and is_gone(victim)
        assert torch.equal(parallel(x), 2 * x)


def test_a_stream_is_complete_and_in_order_whichever_worker_dies(tmp_path: Path) -> None:
    inputs = [torch.full((1,), float(k)) for k in range(8)]
    with laid_out(Slow(tmp_path, 0.05), TWO) as parallel:
        made = []
        for number, result in enumerate(parallel.map(inputs)):
            made.append(result)
            if number in (1, 4):
                os.kill(parallel.worker_pids[number % 2], signal.SIGKILL)
    assert torch.equal(torch.cat(made), 2 * torch.arange(8.0))


@pytest.mark.parametrize("layout", [Layout(tensor=2), Layout(pipeline=2, microbatches=2)])
def test_workers_that_compute_together_are_replaced_together(layout: Layout) -> None:
    model, x = tiny_llama(), torch.arange(24).view(2, 12)
    with laid_out(model, layout, x) as parallel:
        before = parallel(x).logits
        pids = parallel.worker_pids
        os.kill(pids[0], signal.SIGKILL)
        assert torch.equal(parallel(x).logits, before)
        assert not set(pids) & set(parallel.worker_pids)


def test_a_worker_that_keeps_dying_is_an_error_with_its_last_words() -> None:
    x = torch.ones(4, 1)
    with laid_out(Dies(), TWO) as parallel:
        with pytest.raises(WorkerError, match=r"exit code 7(.|\n)*out of cheese"):
            parallel(-x)
        assert torch.equal(parallel(x), 2 * x)


def test_what_cannot_be_sent_runs_in_this_process_and_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Held(nn.Linear):
        def __init__(self) -> None:
            super().__init__(3, 3)
            self.lock = threading.Lock()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            with self.lock:
                return super().forward(x) * (2 if self.training else 1)

    model, x = nn.Sequential(Held(), nn.Linear(3, 2)), torch.randn(4, 3)
    model.eval()
    expected = model(x)
    model.train()
    for on_workers in (
        tauten.parallelize(model, x, workers=2),
        tauten.parallelize(model, workers=2, mode="data"),
        tauten.distribute(model, workers=2),
    ):
        caplog.clear()
        with on_workers:
            assert torch.equal(on_workers(x), expected)
            assert [y.shape for y in on_workers.map([x, x[:1]])] == [(4, 2), (1, 2)]
        assert all(module.training for module in model.modules())
    (said,) = (record.message for record in caplog.records)
    assert "0.lock" in said and said.endswith("it runs in this process")
    with pytest.raises(InputError, match=r"0\.lock"):
        tauten.parallelize(model, workers=2, train=True)


def test_a_job_that_cannot_be_opened_says_so_each_time() -> None:
    cluster, job = Cluster(OwnEngine()), Job("tauten.distributed.inference:Missing")
    for _ in range(2):
        with pytest.raises(AttributeError, match="Missing"):
            cluster.load(job)


def test_a_launcher_that_still_imports_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tauten.parallel.launcher._PATIENCE_S", 0.0)
    launcher = Launcher()
    launcher.close()
    assert launcher._process.returncode == -signal.SIGKILL and not launcher.folder.exists()


def test_nothing_is_left_after_ctrl_c_or_a_kill() -> None:
    process = run_python("-c", ENDS_TWICE)
    try:
        pids = list(map(int, process.stdout.readline().split()))
        assert len(pids) == 2
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == "interrupted\n"
        until(lambda: all(map(is_gone, pids)))
        *again, folder = process.stdout.readline().split()
        assert len(again) == 3 and Path(folder).is_dir()
        process.kill()
        until(lambda: all(is_gone(int(pid)) for pid in again))
        until(lambda: not Path(folder).exists())
    finally:
        process.kill()
        process.communicate()
