"""What the command line does for parallel computing: plan a model, time a plan again."""

import re
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from tauten.core.errors import InputError
from tauten.core.progress import progress_bars
from tauten.faces_inspect import open_model
from tauten.models.source import names_code
from tauten.parallel.given import example_tokens
from tauten.parallel.plan import Plan
from tauten.parallel.replay import replay
from tauten.parallel.start import start
from tauten.report.plan import print_plan, print_replay


def write_plan(
    model: str,
    base: str | None,
    wanted: tuple[str, str, str],
    batch: tuple[int, int, str | None],
    out: Path,
    console: Console,
) -> None:
    """Plan a model, print the plan and write it.

    Args:
        model, base: As typed.
        wanted: Number of workers, mode and goal, as typed.
        batch: Rows, tokens of each, and the size of a row of other inputs, as typed.
        out: File to write.
        console: Where to print.
    """
    workers, mode, goal = wanted
    if workers != "auto" and not workers.isdigit():
        raise InputError(f"--workers {workers}: expected a number from 1 on, or auto")
    given: Any = model if base is None else open_model(model, base)
    inputs = _example(open_model(model, base).skeleton(), *batch)
    count: int | str = workers if workers == "auto" else int(workers)
    with progress_bars(), start(given, inputs, count, mode, goal) as parallel:
        plan = parallel.plan
    plan.save(out)
    print_plan(plan, console)
    console.print(f"written to {out}; time it again: tauten bench --plan {out}", soft_wrap=True)


def time_plan(
    file: Path, model: str | None, base: str | None, rounds: int, console: Console
) -> None:
    """Time a plan again and print how it did; `model` is by default the plan's own."""
    plan = Plan.read(file)
    if model is None and names_code(plan.model):
        raise InputError(
            f"{file} names the function {plan.model}, and no file has code run: if you trust it, "
            f"name it yourself: tauten bench {plan.model} --plan {file}"
        )
    name = model or plan.model
    given: Any = name if base is None else open_model(name, base)
    with progress_bars():
        facts = replay(given, plan, rounds)
    print_replay(plan, facts, console)


def _example(model: Any, rows: int, tokens: int, shape: str | None) -> Any:
    """Inputs for a model with empty tensors."""
    if shape is not None:
        if not re.fullmatch(r"\d+(x\d+)*", shape):
            raise InputError(f"--shape {shape}: expected sizes such as 3x224x224")
        sizes = [int(size) for size in shape.split("x")]
        made: Tensor = torch.randn(
            rows, *sizes, generator=torch.Generator().manual_seed(0), dtype=torch.float32
        )
        return made
    vocabulary = getattr(getattr(model, "config", None), "vocab_size", None)
    if vocabulary is None:
        raise InputError("the model takes no tokens: pass --shape, the size of a row of its input")
    return {"input_ids": example_tokens(int(vocabulary), rows, tokens)}
