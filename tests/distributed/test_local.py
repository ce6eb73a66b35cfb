"""A model on several workers of this machine, also when workers or the driver are killed."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import torch
from faulty_models import Dies, Slow
from losses import losses
from tiny_models import byte_tokenizer, tiny_llama

from tauten.core.errors import BusyError, InputError, WorkerError
from tauten.data.documents import Document
from tauten.data.windows import token_batches
from tauten.distributed.cluster import Cluster
from tauten.distributed.job import Job
from tauten.distributed.local_engine import LocalEngine
from tauten.distributed.start import Access, start
from tauten.evaluation.metrics import Perplexity

TOKENS = [
    torch.randint(0, 256, (3, 20), generator=torch.Generator().manual_seed(i)) for i in range(24)
]
ITEMS = [torch.full((1, 4), float(i)) for i in range(30)]
DRIVER = """
import sys, torch
from faulty_models import Slow
from tauten.distributed.start import Access, start
if __name__ == "__main__":
    with start(Slow(sys.argv[2], 0.05), None, 2, Access()) as model:
        list(model.map([torch.full((1, 4), float(i)) for i in range(30)], sys.argv[1]))
"""


def test_outputs_are_those_of_the_model_also_when_a_worker_is_killed() -> None:
    model = tiny_llama()
    with torch.no_grad():
        expected = [model(x, use_cache=False).logits for x in TOKENS]
    with start(model, None, 2, Access()) as many:
        assert torch.allclose(many(TOKENS[0]).logits, expected[0], atol=1e-5)
        outputs = []
        for number, output in enumerate(many.map(TOKENS)):
            outputs.append(output.logits)
            if number == 3:
                os.kill(many.cluster.pids[1], signal.SIGKILL)
        assert losses(many, TOKENS[0]) == 1
        assert all(torch.equal(a, b) for a, b in zip(outputs, expected, strict=True))


def test_evaluation_over_shards_is_that_of_one_machine() -> None:
    model, tokenizer = tiny_llama(), byte_tokenizer()
    documents = [Document(str(i), f"document {i} " * (5 + i)) for i in range(12)]
    batches = token_batches(documents, tokenizer, 32, 4096, 128)
    expected = Perplexity().value(Perplexity().scores(model, batches))
    with start(model, None, 2, Access()) as many:
        assert many.evaluate(batches) == expected


def test_a_killed_driver_goes_on_without_doing_finished_tasks_again(tmp_path: Path) -> None:
    """The second run's own tasks and the first run's journal add up to all, with none twice."""
    command = [sys.executable, "-c", DRIVER, str(tmp_path / "run"), str(tmp_path)]
    paths = [str(Path(__file__).parents[1]), *(p for p in sys.path if p)]
    driver = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)})
    results = tmp_path / "run" / "results"
    while not results.exists() or len(list(results.glob("*.bin"))) < 5:
        assert driver.poll() is None
        time.sleep(0.02)
    driver.kill()
    driver.wait()
    finished = (tmp_path / "run" / "journal.jsonl").read_bytes().count(b'"event": "task"')
    with start(Slow(tmp_path, 0.0), None, 2, Access()) as model:
        outputs = list(model.map(ITEMS, tmp_path / "run"))
    assert [int(y[0, 0]) for y in outputs] == [2 * number for number in range(30)]
    assert 4 <= finished < 30  # the fifth may have its file and no line yet
    assert sum(model.cluster.done.values()) == 30 - finished


def test_kept_outputs_are_of_that_model_and_those_inputs(tmp_path: Path) -> None:
    models = [torch.nn.Linear(4, 2), torch.nn.Linear(4, 2)]
    with start(models[0], None, 1, Access()) as many:
        list(many.map(ITEMS[:3], tmp_path))
        assert len(list(many.map(ITEMS[:5], tmp_path))) == 5  # more of them may follow
        assert sum(many.cluster.done.values()) == 2
        with pytest.raises(InputError, match="other inputs, from number 2 on"):
            list(many.map([ITEMS[0], ITEMS[2]], tmp_path))
    with start(models[1], None, 1, Access()) as many, pytest.raises(BusyError, match="model"):
        list(many.map(ITEMS[:3], tmp_path))


def test_a_task_that_kills_every_worker_ends_in_an_error() -> None:
    ended = r"(?s)task 1 ended its worker 3 times.*exit code 7"
    with start(Dies(), None, 2, Access()) as many, pytest.raises(WorkerError, match=ended):
        list(many.map([torch.ones(1, 2), -torch.ones(1, 2)]))


def test_an_error_of_the_model_is_raised_here() -> None:
    with start(torch.nn.Linear(3, 3), None, 1, Access()) as many:
        with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
            many(torch.zeros(2, 4))
        assert many(torch.zeros(2, 3)).shape == (2, 3)


def test_only_jobs_of_tauten_are_opened() -> None:
    cluster = Cluster(LocalEngine(1, 1))
    try:
        with pytest.raises(InputError, match=r"expected tauten\.module:Class"):
            list(cluster.run(Job("os:system"), [None]))
    finally:
        cluster.close()


def test_folders_of_workers_are_removed_when_they_have_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    engine = LocalEngine(1, 1)
    left = tmp_path / "tauten-tmp-worker"  # as a worker leaves it, which ends at once
    left.mkdir(0o700)
    engine.close()
    assert not left.exists()


def test_a_folder_of_results_is_filled_by_one_process_at_a_time(tmp_path: Path) -> None:
    with start(Slow(tmp_path, 0.0), None, 1, Access()) as model:
        first = model.map(ITEMS[:3], tmp_path / "results")
        next(first)
        with pytest.raises(BusyError, match="another run is writing there"):
            next(model.map(ITEMS[:3], tmp_path / "results"))
        (tmp_path / "link").mkdir()
        (tmp_path / "link" / "results").symlink_to(tmp_path / "victim")
        with pytest.raises(InputError, match="results is a symbolic link"):
            next(model.map(ITEMS[:3], tmp_path / "link"))
        (tmp_path / "outside").symlink_to(tmp_path / "victim")
        with pytest.raises(InputError, match="outside is a symbolic link"):
            next(model.map(ITEMS[:3], tmp_path / "outside"))
        assert not (tmp_path / "victim").exists()
