"""What the command line does with the API's answers: gather facts, print them."""

import contextlib
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tauten.core.description import parse_yaml, read_text
from tauten.core.errors import InputError
from tauten.core.figures import format_percent, loss_word, plural
from tauten.core.files import write_text
from tauten.core.goal import Goal, parse_bytes, parse_seconds
from tauten.core.printing import printable
from tauten.core.progress import progress_bars
from tauten.core.recipe import Recipe
from tauten.data.reading import UserData
from tauten.evaluation.divergence import Divergence, batches_within
from tauten.evaluation.task import is_language_model, make_task
from tauten.evaluation.unigram import say_if_no_better
from tauten.faces_inspect import open_model
from tauten.models import artifact, covered
from tauten.models.source import Source, open_source
from tauten.report.html import render_html
from tauten.report.terminal import print_result
from tauten.search.choice import choose_recipe
from tauten.search.folder import check_out
from tauten.search.named import compression_recipe, quantization_technique
from tauten.search.run import run_recipe
from tauten.search.techniques import TECHNIQUES


def goal_from_text(
    max_drop: str,
    max_size: str | None,
    max_latency: str | None,
    max_memory: str | None,
    minimize: str,
    original_bytes: int,
) -> Goal:
    """A goal from what was typed."""
    return Goal(
        max_drop=None if max_drop == "none" else max_drop,
        max_size_bytes=None if max_size is None else parse_bytes(max_size, original_bytes),
        max_latency_s=None if max_latency is None else parse_seconds(max_latency),
        max_memory_bytes=None if max_memory is None else parse_bytes(max_memory),
        minimize=minimize,
    )


def read_recipe(file: Path) -> Recipe:
    """A recipe.yaml; one beside the manifest that a run wrote is as it was written."""
    if file.name == artifact.RECIPE and artifact.is_artifact(file.parent):
        artifact.check_files(file.parent, artifact.read_manifest(file.parent), only=file.name)
    text = read_text(file, "pass a recipe.yaml")
    try:
        return Recipe.from_yaml(text, TECHNIQUES)
    except InputError as error:
        raise InputError(f"{file}: {error}") from error


def write_recipe_run(
    model: str | Source,
    recipe: Recipe,
    out: Path,
    console: Console,
    given: UserData,
    teacher: Source | None = None,
    workers: int | str | None = None,
) -> None:
    """Apply a recipe to a model on disk and print what came of it."""
    check_out(out)
    source, data = given.opened(model, teacher)
    options: dict[str, Any] = {"data": data, "teacher": teacher, "workers": workers}
    run_recipe(source, recipe, render_html, out, load=False, **options)
    print_artifact(out, console)


def write_quantized(
    model: str,
    wanted: tuple[int | None, int | None, str | None],
    given: UserData,
    time: str | None,
    out: Path,
    console: Console,
    entropy_coding: bool,
    workers: int | str | None = None,
) -> None:
    """Quantize a model on disk; `wanted` is bits, group size and the name of a technique."""
    bits, group_size, name = wanted
    check_out(out)
    limit_s = None if time is None else parse_seconds(time)
    source, data = given.opened(model)
    if name is None:
        recipe = choose_recipe(source, bits, group_size, "*", data is not None, limit_s)
    else:
        recipe = Recipe.of(quantization_technique(name, bits, group_size))
    recipe = replace(recipe, entropy_coding=entropy_coding)
    write_recipe_run(source, recipe, out, console, UserData(data), workers=workers)


def write_compressed(
    model: str,
    wanted: tuple[str, list[str]],
    given: UserData,
    teacher: str | None,
    out: Path,
    console: Console,
    entropy_coding: bool,
    workers: int | str | None = None,
) -> None:
    """Compress a model on disk; `wanted` is a technique's name and its knobs as `name=value`."""
    name, settings = wanted
    recipe = compression_recipe(name, "*", dict(map(_knob, settings)))
    original = None if teacher is None else open_source(teacher)
    recipe = replace(recipe, entropy_coding=entropy_coding)
    write_recipe_run(model, recipe, out, console, given, original, workers)


def _knob(text: str) -> tuple[str, Any]:
    """Name and value of `name=value`; the value as recipes write it."""
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise InputError(f"--knob {text}: expected name=value, such as max_error=0.02")
    read, _ = parse_yaml(value, f"--knob {text}")
    if isinstance(read, str):
        with contextlib.suppress(ValueError):
            read = float(read)  # to YAML 1e-4 is text
    return name, read


def print_artifact(folder: Path, console: Console) -> None:
    """Print the report of an artifact."""
    manifest, timing = artifact.read_manifest(folder), artifact.read_timing(folder)
    print_result(manifest, timing, console, str(folder))


def accept_changes(folder: Path, console: Console) -> None:
    """Have an artifact's manifest cover its files as they are now, and say which had changed."""
    changed = covered.accept(folder, artifact.read_manifest(folder))
    console.print("\n".join(map("accepted: {}".format, changed)) or "nothing has changed")


def write_report(folder: Path) -> Path:
    """Render the HTML report of an artifact anew."""
    file = folder / artifact.REPORT
    write_text(file, render_html(artifact.read_manifest(folder), artifact.read_timing(folder)))
    return file


def evaluate_facts(
    name: str, reference: str | None, given: UserData, base: str | None, max_tokens: int, seed: int
) -> dict[str, Any]:
    """Quality on the test documents, and against a reference if there is one."""
    source = open_model(name, base)
    original, data = given.opened(open_model(reference, base) if reference else source)
    model = source.open()
    task = make_task(original, model, data, None, seed, max_tokens, tunes=False)
    metric, batches = task.metric(), task.splits.test
    with progress_bars():
        before_model = original.open() if reference else model
        metric.prepare(before_model, batches)
        before = metric.scores(before_model, batches)
        if task.is_text and task.splits.calibration:
            say_if_no_better(metric.value(before), task.splits.calibration, batches)
        after = metric.scores(model, batches) if reference else before
        facts: dict[str, Any] = {
            "model": name,
            "metric": metric.name,
            "value": metric.value(after),
            "size_bytes": source.size_bytes,
            **task.facts(),
        }
        if reference:
            facts |= {"original": metric.value(before), "drop": metric.drop(before, after)}
            facts["lost"] = loss_word(metric.higher_is_better)
        if reference and task.is_text:
            vocabulary = int(before_model.config.vocab_size)  # type: ignore[union-attr, arg-type]
            chosen = batches_within(batches, vocabulary)
            facts["kl"] = float(Divergence(before_model, chosen).of(model).mean())
    return facts


def print_evaluation(facts: dict[str, Any], console: Console) -> None:
    """Print what `evaluate_facts` gathered."""
    table = Table(show_header=False, title=f"{facts['metric']} of {facts['model']}")
    table.add_row(facts["metric"], f"{facts['value']:.4f}")
    if "drop" in facts:
        drop = facts["drop"]
        interval = f"{format_percent(drop.low)} to {format_percent(drop.high)}"
        table.add_row("of the original", f"{facts['original']:.4f}")
        table.add_row(facts["lost"], f"{format_percent(drop.value)} (90% interval {interval})")
    if "kl" in facts:
        table.add_row("KL to the original", f"{facts['kl']:.5f} nats a token")
    table.add_row(
        "measured on", f"{plural(facts['documents']['test'], 'document')} of {facts['name']}"
    )
    console.print(table)


def generate_text(name: str, prompt: str, max_new_tokens: int) -> None:
    """Continue a prompt on standard output, as it is computed."""
    from transformers import TextStreamer

    source = open_source(name)
    model = source.open()
    if not is_language_model(model) or source.tokenizer is None:
        raise InputError(f"{name}: isn't a language model with a tokenizer; call it from Python")
    tokenizer = source.tokenizer()
    ids = tokenizer(prompt, return_tensors="pt").input_ids
    if not ids.numel():
        raise InputError("the prompt is empty; pass some text")

    class Printer(TextStreamer):
        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            super().on_finalized_text(printable(text), stream_end)

    streamer = Printer(tokenizer, skip_special_tokens=True)
    model.generate(ids, max_new_tokens=max_new_tokens, do_sample=False, streamer=streamer)  # type: ignore[operator]
