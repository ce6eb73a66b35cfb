"""The command line: each command reads its options, calls the API and prints."""

import io
import signal
import sys
import webbrowser
from pathlib import Path
from typing import Annotated, Any

import typer

from tauten.cli_command import app, command, console
from tauten.cli_options import (
    Base,
    Bits,
    Calibration,
    Coding,
    Data,
    Folder,
    Model,
    Out,
    Seed,
    TextColumn,
    Tokenizer,
    Tokens,
    Workers,
)


@command
def inspect(model: Model, base: Base = None) -> None:
    """Show a model's blocks, units, shapes and sizes."""
    from tauten.faces_inspect import inspect_facts
    from tauten.report.terminal import print_inspect

    print_inspect(inspect_facts(model, base), console)


@command
def optimize(
    model: Model,
    data: Data = "python-docs",
    max_drop: Annotated[
        str,
        typer.Option(
            help="Largest loss of quality: 2%, '0.5 points' or '0.1 absolute'; 'none' for all."
        ),
    ] = "2%",
    max_size: Annotated[
        str | None, typer.Option(help="Largest weights file: 60MB, 1.5GiB, or 4x (a quarter).")
    ] = None,
    max_latency: Annotated[
        str | None, typer.Option(help="Longest time of one token or call: 20ms.")
    ] = None,
    max_memory: Annotated[
        str | None, typer.Option(help="Most memory, for this run and for its result: 4GB.")
    ] = None,
    minimize: Annotated[str, typer.Option(help="size, latency or memory.")] = "size",
    time: Annotated[str | None, typer.Option(help="Time in which to search, such as 20m.")] = None,
    effort: Annotated[
        str, typer.Option(help="quick, normal or thorough: when further trials aren't worth it.")
    ] = "normal",
    out: Out = Path("optimized"),
    entropy_coding: Coding = False,
    max_tokens: Tokens = 8192,
    seed: Seed = 0,
    workers: Workers = None,
    text_column: TextColumn = None,
    tokenizer: Tokenizer = None,
) -> None:
    """Find the best model within a goal, and prove it. Killed runs go on where they stopped."""
    from tauten.api import optimize as call
    from tauten.core.goal import parse_seconds
    from tauten.faces import goal_from_text, print_artifact
    from tauten.faces_distributed import parse_workers
    from tauten.models.source import open_source
    from tauten.search.folder import check_out

    check_out(out)  # before minutes are spent on loading
    source = open_source(model)
    goal = goal_from_text(max_drop, max_size, max_latency, max_memory, minimize, source.size_bytes)
    call(
        source,
        data,
        goal,
        out=out,
        seed=seed,
        max_tokens=max_tokens,
        entropy_coding=entropy_coding,
        max_time_s=None if time is None else parse_seconds(time),
        workers=parse_workers(workers),
        effort=effort,
        text_column=text_column,
        tokenizer=tokenizer,
    )
    print_artifact(out, console)


@command
def quantize(
    model: Model,
    bits: Bits = None,
    group_size: Annotated[
        int | None, typer.Option(help="Columns that share a scale; 0 for one a row.", min=0)
    ] = None,
    technique: Annotated[
        str | None, typer.Option(help="Its name; by default what data, time and memory allow.")
    ] = None,
    data: Calibration = None,
    time: Annotated[str | None, typer.Option(help="Most time to take, such as 20m.")] = None,
    out: Out = Path("quantized"),
    entropy_coding: Coding = False,
    workers: Workers = None,
    text_column: TextColumn = None,
    tokenizer: Tokenizer = None,
) -> None:
    """Hold the weights in fewer bits; with data, so that little is lost on it."""
    from tauten.data.reading import UserData
    from tauten.faces import write_quantized
    from tauten.faces_distributed import parse_workers

    wanted, count = (bits, group_size, technique), parse_workers(workers)
    given = UserData(data, tokenizer, text_column)
    write_quantized(model, wanted, given, time, out, console, entropy_coding, count)


@command
def compress(
    model: Model,
    technique: Annotated[str, typer.Option(help="Its name.")] = "share_kmeans",
    knob: Annotated[
        list[str] | None,
        typer.Option(help="A setting of the technique, such as max_error=0.02; may be repeated."),
    ] = None,
    data: Calibration = None,
    teacher: Annotated[
        str | None, typer.Option(help="The model to imitate; by default the one that is given.")
    ] = None,
    out: Out = Path("compressed"),
    entropy_coding: Coding = False,
    workers: Workers = None,
    text_column: TextColumn = None,
    tokenizer: Tokenizer = None,
) -> None:
    """Make a model smaller; by default by fewer distinct values of its weights, without data."""
    from tauten.data.reading import UserData
    from tauten.faces import write_compressed
    from tauten.faces_distributed import parse_workers

    wanted, count = (technique, knob or []), parse_workers(workers)
    given = UserData(data, tokenizer, text_column)
    write_compressed(model, wanted, given, teacher, out, console, entropy_coding, count)


@command
def apply(
    recipe: Annotated[Path, typer.Argument(help="A recipe.yaml.", show_default=False)],
    model: Model,
    data: Calibration = None,
    out: Out = Path("applied"),
    workers: Workers = None,
    text_column: TextColumn = None,
    tokenizer: Tokenizer = None,
) -> None:
    """Apply a recipe that a run wrote; the same model and data give the same bytes."""
    from tauten.data.reading import UserData
    from tauten.faces import read_recipe, write_recipe_run
    from tauten.faces_distributed import parse_workers

    count = parse_workers(workers)
    given = UserData(data, tokenizer, text_column)
    write_recipe_run(model, read_recipe(recipe), out, console, given, workers=count)


@command
def eval_(
    model: Model,
    reference: Annotated[
        str | None, typer.Option(help="The original, to measure the drop against.")
    ] = None,
    data: Data = "python-docs",
    base: Base = None,
    max_tokens: Tokens = 8192,
    seed: Seed = 0,
    text_column: TextColumn = None,
    tokenizer: Tokenizer = None,
) -> None:
    """Measure quality on the test documents, and the drop against an original."""
    from tauten.data.reading import UserData
    from tauten.faces import evaluate_facts, print_evaluation

    given = UserData(data, tokenizer, text_column)
    facts = evaluate_facts(model, reference, given, base, max_tokens, seed)
    print_evaluation(facts, console)


@command
def parallelize(
    model: Model,
    workers: Annotated[str, typer.Option(help="Most processes; auto: one a core or GPU.")] = "auto",
    batch: Annotated[int, typer.Option(help="Rows of a call.", min=1)] = 8,
    length: Annotated[int, typer.Option(help="Tokens a row, for language models.", min=1)] = 64,
    shape: Annotated[
        str | None, typer.Option(help="Size of a row of other models' input, such as 3x224x224.")
    ] = None,
    mode: Annotated[str, typer.Option(help="auto, data or task (cut the model).")] = "auto",
    goal: Annotated[str, typer.Option(help="throughput, latency or memory.")] = "throughput",
    base: Base = None,
    out: Annotated[Path, typer.Option("-o", "--out", help="File for the plan.")] = Path(
        "plan.json"
    ),
) -> None:
    """Find how a model is best laid out over workers on this machine, by measurement."""
    from tauten.faces_parallel import write_plan

    write_plan(model, base, (workers, mode, goal), (batch, length, shape), out, console)


@command
def bench(
    model: Annotated[
        str | None, typer.Argument(help="As elsewhere; by default the plan's.", show_default=False)
    ] = None,
    reference: Annotated[
        str | None, typer.Option(help="The original, timed alternately with the model.")
    ] = None,
    base: Base = None,
    rounds: Annotated[int, typer.Option(help="Turns each contender gets.", min=1)] = 5,
    layers: Annotated[
        bool, typer.Option("--layers", help="Time each kind of layer in each format instead.")
    ] = False,
    plan: Annotated[
        Path | None, typer.Option(help="A plan.json: time its layout beside one worker instead.")
    ] = None,
) -> None:
    """Time a language model's prompts and tokens, beside its original."""
    from tauten.core.errors import InputError
    from tauten.faces_parallel import time_plan
    from tauten.faces_timing import bench_facts, bench_layers, print_bench, print_layers

    if plan is not None:
        time_plan(plan, model, base, rounds, console)
        return
    if model is None:
        raise InputError("pass a model, or --plan with a file that `tauten parallelize` wrote")
    if layers:
        print_layers(bench_layers(model, base, rounds), console)
        return
    print_bench(bench_facts(model, reference, base, rounds), console)


@command
def run(
    model: Model,
    prompt: Annotated[str, typer.Argument(help="What to continue.")] = "Once upon a time",
    max_new_tokens: Annotated[int, typer.Option(help="Most tokens to add.", min=1)] = 128,
) -> None:
    """Continue a prompt, greedily, printing as it goes."""
    from tauten.faces import generate_text

    generate_text(model, prompt, max_new_tokens)


@command
def report(
    folder: Folder,
    open_: Annotated[bool, typer.Option("--open", help="Open it in a browser.")] = False,
) -> None:
    """Print what a run found and write its HTML report anew."""
    from tauten.faces import print_artifact, write_report

    file = write_report(folder)  # also where whoever reads what is printed stops early
    print_artifact(folder, console)
    if open_:
        webbrowser.open(file.resolve().as_uri())


@command
def accept(folder: Folder) -> None:
    """Take files of a folder as they are now, where you changed some on purpose."""
    from tauten.faces import accept_changes

    accept_changes(folder, console)


def main() -> None:
    """Entry point of the `tauten` command."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a console may not know what a model writes
            stream.reconfigure(errors="replace")
    signal.signal(signal.SIGTERM, _stop)
    app()


def _stop(number: int, _: Any) -> None:
    """End as by Ctrl-C, so that nothing is left behind."""
    raise KeyboardInterrupt(128 + number)


from tauten import cli_distributed as cli_distributed  # noqa: E402 (registers its commands)
