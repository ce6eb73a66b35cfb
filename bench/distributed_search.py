"""Twenty trials one after the other, and on two workers of one thread each."""

import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from distributed_driver import folder

import tauten
from tauten.core.goal import Goal
from tauten.core.recipe import Recipe
from tauten.data.calibration import calibration_batches
from tauten.evaluation.task import make_task
from tauten.models.source import open_source
from tauten.models.structure import find_structure
from tauten.search.ahead import trials_ahead
from tauten.search.loop import Search
from tauten.search.workspace import Workspace

Row = dict[str, Any]
LEAST_GAIN, TRIALS = 1.8, 20
TEXTS = [f"Document {i}: " + f"the number {i * i} is a square. " * 16 for i in range(60)]


def recipes() -> list[Recipe]:
    """Grids of GPTQ and of rounding, from gentle to bold."""
    found = [tauten.GPTQ(bits, group) for bits in (8, 6, 5, 4, 3) for group in (32, 64, 128)]
    found += [tauten.KQuant(bits) for bits in (6, 5, 4, 3, 2)]
    return [Recipe.of(technique) for technique in found][:TRIALS]


def tried(model: str, workers: int | None) -> tuple[float, list[Any]]:
    """Seconds of all trials, and what each came to; opening the model isn't counted."""
    source = open_source(model)
    skeleton = source.skeleton()
    task = make_task(source, skeleton, TEXTS, max_tokens=8192)
    with tempfile.TemporaryDirectory() as temporary:
        batches = calibration_batches(task.splits.calibration, skeleton)
        structure = find_structure(skeleton)
        workspace = Workspace(Path(temporary), source, structure, {}, batches)
        search = Search(workspace, task, Goal(max_drop=1.0))
        search.evaluator.start()
        search.evaluator.looks = TRIALS
        made = search._made
        with trials_ahead(workspace, search.evaluator, task, False, workers) as ahead:
            if ahead is not None:
                ahead.wait_for(2)
            begun = time.perf_counter()
            made.ahead = ahead
            made.expect(recipes())
            for recipe in recipes():
                made.add(recipe)
            return time.perf_counter() - begun, made.tried


def search() -> list[Row]:
    """Both ways in turns; the fastest of each, as other work on the machine only adds to it."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        model = folder(Path(temporary) / "model", 384, 6)
        turns = [(tried(model, None), tried(model, 2)) for _ in range(2)]
    alone, together = (min(turn[i][0] for turn in turns) for i in (0, 1))
    first, second = ([t.measurement for t in turns[0][i][1]] for i in (0, 1))
    gain = alone / together
    return [
        {
            "trials": TRIALS,
            "one_after_the_other_s": alone,
            "two_workers_s": together,
            "gain": gain,
            "same_measurements": first == second,
            "ok": gain >= LEAST_GAIN and first == second,
        }
    ]
