"""The four lines as a user first writes them: no arguments, no main guard, however Python runs."""

import contextlib
import os
import select
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient
from waiting import LIMIT_S

# What a user types, as cells of a notebook; no blank lines inside, for the interactive prompt.
CELLS = (
    """
import torch, transformers
import tauten.methods
print("imported once")
factor = 2.0
""",
    """
class Net(torch.nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer
        self.scale = lambda y: y * factor
    def forward(self, x):
        made = self.layer(x)
        return self.scale(made if isinstance(made, torch.Tensor) else made.last_hidden_state)
""",
    """
def doubled():
    times = 2
    net = torch.nn.Sequential(torch.nn.Linear(10, 32), torch.nn.ReLU(), torch.nn.Linear(32, 6))
    net.register_forward_hook(lambda module, inputs, output: output * times)
    return net
""",
    """
sizes = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48)
bert = transformers.BertModel(transformers.BertConfig(vocab_size=64, **sizes))
cnn = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Flatten())
models = {
    "closure": (doubled(), torch.randn(6, 10)),
    "cnn": (Net(cnn), torch.randn(6, 3, 8, 8)),
    "transformer": (Net(bert), torch.randint(0, 64, (6, 12))),
}
""",
    """
for name, (model, x) in models.items():
    model.eval()
    for made in (model.compress(), model.quantize(), model.parallelize(), model.distribute()):
        with torch.no_grad():
            expected, outputs = model(x), made(x)
        limit = 0.1 if "Module" not in type(made).__name__ else 1e-5
        assert (outputs - expected).norm() <= limit * expected.norm(), (name, made)
        print(name, type(made).__name__, flush=True)
""",
)
SHOWN = [
    f"{name} {kind}"
    for name, first in (("closure", "Sequential"), ("cnn", "Net"), ("transformer", "Net"))
    for kind in (first, first, "ParallelModule", "DistributedModule")
]
FOUR = "\n".join(CELLS)
# A call long enough for layouts to be tried on workers, which must build the script's class there.
MEASURED = """
import torch, tauten.methods
class Wide(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = torch.nn.Sequential(*(torch.nn.Linear(512, 512) for _ in range(4)))
    def forward(self, x):
        return self.layers(x)
model, x = Wide().eval(), torch.randn(64, 512)
parallel = model.parallelize(goal="memory")
print(parallel.plan.reason)
assert not parallel.worker_pids
difference = (parallel(x) - model(x)).abs().max()
tried = [option for option in parallel.plan.options if option.layout.workers > 1]
assert tried and not any(option.refusal for option in tried), tried
assert difference < 1e-4
one = parallel.plan(x[:1])
assert one is not None and one.rows == 1 and parallel.plan == one
assert torch.allclose(parallel(x), model(x), atol=1e-4)
"""
RAISES = """
import torch, tauten.methods
many = torch.nn.Linear(4, 4).distribute()
many(torch.randn(2, 4))
raise KeyError("amid the work")
"""
WAITS = """
import signal, time, torch, tauten.methods
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
class Slow(torch.nn.Module):
    def forward(self, x):
        time.sleep(60)
many = Slow().distribute()
many.wait_for(1)
print("begins", flush=True)
many(torch.randn(2, 4))
"""


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """Of the processes that a test starts; none of them may be left at its end."""
    mark = uuid.uuid4().hex
    monkeypatch.setenv("TAUTEN_TEST_MARK", mark)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
    yield dict(os.environ)
    until_gone(mark)


def until_gone(mark: str) -> None:
    """Wait until no process but this one has the mark in its environment."""
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            pid = int(path.parent.name)
            if pid != os.getpid() and mark.encode() in path.read_bytes():
                end = os.pidfd_open(pid)
                assert wait_for(end), path.parent.joinpath("cmdline").read_bytes()


def wait_for(pidfd: int) -> bool:
    """Whether a process ends."""
    try:
        return bool(select.select([pidfd], [], [], LIMIT_S)[0])
    finally:
        os.close(pidfd)


def run(folder: Path, environment: dict[str, str], *arguments: Any, text: str = "") -> str:
    """Standard output of Python."""
    command = [sys.executable, *map(str, arguments)]
    done = subprocess.run(
        command, env=environment, cwd=folder, input=text, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def as_file(folder: Path, environment: dict[str, str]) -> str:
    (folder / "script.py").write_text(FOUR)
    return run(folder, environment, "script.py")


def as_command(folder: Path, environment: dict[str, str]) -> str:
    return run(folder, environment, "-c", FOUR)


def as_standard_input(folder: Path, environment: dict[str, str]) -> str:
    return run(folder, environment, text=FOUR)


def as_typed_lines(folder: Path, environment: dict[str, str]) -> str:
    typed = "".join(f"{cell.strip()}\n\n" for cell in CELLS)
    return run(folder, environment, "-i", "-q", text=f"{typed}\nprint('typed to the end')\n")


def as_import(folder: Path, environment: dict[str, str]) -> str:
    (folder / "mine.py").write_text(FOUR)
    later = "import mine\nmodel, x = mine.models['cnn']\nprint(len(model.distribute()(x)))"
    (folder / "script.py").write_text(later)
    made = run(folder, environment, "script.py")
    assert made.endswith("\n6\n")
    return made


def as_notebook(folder: Path, environment: dict[str, str]) -> str:
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in CELLS])
    NotebookClient(
        notebook, kernel_name="python3", resources={"metadata": {"path": folder}}
    ).execute()
    outputs = [output for cell in notebook.cells for output in cell.outputs]
    return "".join(output.text for output in outputs if output.get("name") == "stdout")


WAYS = (as_file, as_command, as_standard_input, as_typed_lines, as_import, as_notebook)


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_the_four_lines(
    way: Callable[[Path, dict[str, str]], str], tmp_path: Path, environment: dict[str, str]
) -> None:
    lines = way(tmp_path, environment).splitlines()
    assert lines.count("imported once") == 1  # no worker runs the script again
    assert [line for line in lines if line in SHOWN] == SHOWN


def test_the_first_call_is_what_the_plan_is_measured_on(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    (tmp_path / "script.py").write_text(MEASURED)
    assert "the first call" in run(tmp_path, environment, "script.py")


def test_nothing_is_left_after_an_exception(tmp_path: Path, environment: dict[str, str]) -> None:
    done = subprocess.run([sys.executable, "-c", RAISES], env=environment, capture_output=True)
    assert done.returncode == 1 and b"KeyError: 'amid the work'" in done.stderr


def test_nothing_is_left_after_ctrl_c_amid_a_call(environment: dict[str, str]) -> None:
    script = subprocess.Popen(
        [sys.executable, "-c", WAITS], env=environment, stdout=subprocess.PIPE
    )
    assert script.stdout is not None and script.stdout.readline() == b"begins\n"
    script.send_signal(signal.SIGINT)
    script.communicate()
    assert script.returncode == -signal.SIGINT
