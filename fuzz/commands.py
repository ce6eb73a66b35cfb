"""Every long command, on models that take it a second or so."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import tauten
from fuzz import models
from tauten.core import temporary
from tauten.core.files import whole_file
from tauten.models import artifact, training
from tauten.parallel import launcher
from tauten.search import dense, publish

# What holds measured times; all else must be the same to the byte.
LOOSE = frozenset({artifact.TIMING, artifact.REPORT, "plan.json"})
INPUTS = "../../inputs"  # as seen from where a command runs
LLAMA, DEEP, TEXTS = f"{INPUTS}/llama", f"{INPUTS}/deep", f"{INPUTS}/texts.jsonl"


@dataclass(frozen=True)
class Command:
    """A command.

    Attributes:
        name: In tables, and of its cases' seeds.
        run: It, called in the folder that it writes into.
        prepare: Puts into that folder what must be there before.
    """

    name: str
    run: Callable[[], object]
    prepare: Callable[[Path], object] = lambda work: None


def steady(memory: Path) -> None:
    """Let nothing that is measured decide what is written, and checkpoints be written often.

    Args:
        memory: Folder for what processes share.
    """
    training.CHECKPOINT_S = 0.0
    dense.time_packed = lambda *_: (1.0, 0.5)
    publish.resident_bytes = lambda _: 1
    launcher.SHARED_MEMORY = temporary.SHARED_MEMORY = memory


def make_inputs(folder: Path) -> None:
    """What the commands read."""
    folder.mkdir(parents=True)
    models.llama_folder(folder / "llama")
    models.llama_folder(folder / "deep", layers=3)
    rows = [json.dumps({"text": text}) for text in models.TEXTS]
    (folder / "texts.jsonl").write_text("\n".join(rows))
    recipe = tauten.Recipe.of(tauten.AutoRound(4, 32, iterations=8), tauten.TuneScales())
    (folder / "recipe.yaml").write_text(recipe.to_yaml())
    goal = tauten.Goal(max_drop=0.3)
    batches = models.images()
    tauten.optimize(models.network(), batches, goal, out=folder / "done", effort="quick")


def _cli(*words: str) -> Callable[[], object]:
    """The command line, which ends the process."""
    from tauten.cli import app

    return lambda: app(list(words))


def _optimize() -> None:
    goal = tauten.Goal(max_drop=0.3)
    tauten.optimize(models.network(), models.images(), goal, out="out", effort="quick")


def _map() -> None:
    with tauten.distribute(models.network(), workers=2) as many:
        outputs: Any = many.map(models.images(), folder="results")
        with whole_file(Path("outputs.bin")) as opened:
            torch.save(list(outputs), opened)


def _train() -> None:
    with tauten.parallelize(models.network(), workers=2, train=True) as parallel:
        trained: Any = parallel
        optimizer = trained.optimizer(torch.optim.SGD, lr=0.01)
        for batch in models.images(3):
            optimizer.zero_grad()
            trained(batch).square().mean().backward()
            optimizer.step()
        with whole_file(Path("state.bin")) as opened:
            torch.save(trained.state_dict(), opened)


def _blocks_on_workers() -> None:
    recipe = tauten.Recipe.of(tauten.RTN(4, 32))
    tauten.quantize(DEEP, technique=recipe, out="out", workers=2)


def all_commands() -> dict[str, Command]:
    """By name."""
    data = ("--data", TEXTS, "-o", "out")
    steps = ("--knob", "steps=6", *data)
    found = (
        Command("quantize", _cli("quantize", DEEP, "--bits", "4", "-o", "out")),
        Command("gptq", _cli("quantize", DEEP, "--technique", "gptq", *data)),
        Command("coded", _cli("quantize", LLAMA, "--bits", "3", "--entropy-coding", "-o", "out")),
        Command("compress", _cli("compress", LLAMA, "-o", "out")),
        Command("depth", _cli("compress", DEEP, "--technique", "prune_depth", *data)),
        Command("distill", _cli("compress", LLAMA, "--technique", "distill", *steps)),
        Command("apply", _cli("apply", f"{INPUTS}/recipe.yaml", LLAMA, *data)),
        Command("optimize", _optimize),
        Command("optimize text", _cli("optimize", LLAMA, "--max-drop", "9%", *data)),
        Command("report", _cli("report", "done"), _with_artifact),
        Command("parallelize", _cli("parallelize", LLAMA, "--workers", "2")),
        Command("bench", _cli("bench", LLAMA, "--rounds", "1")),
        Command("map", _map),
        Command("train", _train),
        Command("on workers", _blocks_on_workers),
        Command(
            "data on workers",
            _cli("quantize", DEEP, "--technique", "gptq", *data, "--workers", "2"),
        ),
    )
    return {command.name: command for command in found}


def _with_artifact(work: Path) -> None:
    shutil.copytree(work.parents[1] / "inputs" / "done", work / "done")
