"""The calls that users make. They check arguments and hand over; nothing is decided here."""

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tauten.core.effort import effort_named
from tauten.core.errors import InputError
from tauten.core.files import given_path
from tauten.core.goal import Goal
from tauten.core.measurement import Result
from tauten.core.printing import logger
from tauten.core.recipe import Recipe
from tauten.core.technique import Technique
from tauten.data.reading import UserData
from tauten.evaluation.user_metric import Metric
from tauten.models import artifact
from tauten.models.source import Source, open_source
from tauten.report.html import render_html
from tauten.search.choice import choose_recipe
from tauten.search.folder import check_out
from tauten.search.named import compression_recipe, quantization_technique, recipe_of
from tauten.search.run import run_recipe, run_search

_log = logger(__name__)
ModelLike = str | os.PathLike[str] | nn.Module | Source


def quantize(
    model: ModelLike,
    bits: int | None = None,
    *,
    group_size: int | None = None,
    technique: str | Technique | Recipe | None = None,
    data: Any = None,
    max_time_s: float | None = None,
    where: str = "*",
    out: str | os.PathLike[str] | None = None,
    entropy_coding: bool = False,
    workers: int | str | None = None,
    tokenizer: Any = None,
    text_column: str | None = None,
) -> nn.Module:
    """Hold a model's weights in fewer bits.

    Args:
        model: A module, a Hugging Face folder or id, a GGUF file, or `package.module:factory`.
        bits: 1 to 8, by default 8.
        group_size: Columns that share a scale, for techniques that have groups.
        technique: Name or instance, such as `tauten.RTN(4, group_size=32)`, or a recipe of
            several. By default the one that loses least as far as data, time and memory allow;
            the log says which and why.
        data: Text or tensor batches as for `optimize`, all of which may be calibrated on.
        max_time_s: Most time to take, by an estimate; a faster technique is chosen for it.
        where: Pattern of the layers to pack; the others stay as they are.
        out: Also write the result there, as a folder that `load` reads.
        entropy_coding: Code what is written losslessly into fewer bytes; takes a moment to load.
        workers: Processes of this machine, or a cluster as for `distribute`, that share the work:
            blocks where each is packed by itself, else the calibration data. The packed weights
            are the same to the bit.
        tokenizer: Reads texts, where the model has none of its own: an object of transformers,
            tokenizers or tiktoken, a function from text to token ids, or a folder.
        text_column: Of texts in rows (JSON, tables, parquet), the column to read; by default
            `text`, or the only one that is text.
    Returns:
        A module that is called like the model. The model itself isn't changed; what stays
        unpacked is shared with it.
    Raises:
        InputError: An argument or the model doesn't serve; nothing is written.
    """
    if not isinstance(technique, str | None) and (bits is not None or group_size is not None):
        raise InputError("give bits and group_size inside the technique instance, not beside it")
    path = _checked_out(out, entropy_coding)
    source, data = UserData(data, tokenizer, text_column).opened(model)
    if technique is None:
        has_data = data is not None
        recipe = choose_recipe(source, bits, group_size, where, has_data, max_time_s)
    else:
        if isinstance(technique, str):
            technique = quantization_technique(technique, bits, group_size)
        recipe = recipe_of(technique, where)
    recipe = replace(recipe, entropy_coding=entropy_coding or recipe.entropy_coding)
    return _apply(source, recipe, path, data, None, workers)


def compress(
    model: ModelLike,
    *,
    technique: str | Technique | Recipe | None = None,
    data: Any = None,
    goal: Goal | None = None,
    metric: str | Metric | Callable[[nn.Module, Any], Any] | None = None,
    teacher: ModelLike | None = None,
    where: str = "*",
    out: str | os.PathLike[str] | None = None,
    entropy_coding: bool = False,
    workers: int | str | None = None,
    tokenizer: Any = None,
    text_column: str | None = None,
    **knobs: Any,
) -> nn.Module:
    """Make a model smaller; by default fewer distinct weights, within a 1% error of every tensor.

    With a goal it is `optimize` over the techniques of compression: sharing, pruning, and smaller
    architectures that are then healed. The log says how the result compares with the goal.

    Args:
        model: As for `quantize`.
        technique: Name or instance, such as `tauten.ShareKMeans(max_error=0.02)`, or a recipe of
            several; by default `share_kmeans`.
        data: Text or tensor batches as for `optimize`; without a goal all may be looked at.
        goal: What the result must keep, measured on the data; takes the place of a technique.
        metric: That a goal is about; as for `optimize`.
        teacher: For techniques that train: the model to imitate, of the same kinds of inputs and
            outputs. By default the model as it is given.
        where: Pattern of the layers to compress.
        out: Also write the result there.
        entropy_coding: As for `quantize`.
        workers: As for `quantize`; for `distill` they run the teacher. With a goal as for
            `optimize`.
        tokenizer: As for `quantize`; by default also the teacher's.
        text_column: As for `quantize`.
        **knobs: Of the technique named.
    Returns:
        A module that is called like the model. Pruned layers that this machine computes slower
        packed than dense, for one row or image, are dense in it, and the log says so; files that
        are written stay packed, and load alike.
    Raises:
        InputError: An argument or the model doesn't serve; nothing is written.
    """
    if goal is not None:
        if technique is not None or teacher is not None or knobs or where != "*":
            raise InputError("a goal chooses techniques: give either, and no knobs beside a goal")
        if data is None:
            raise InputError("a goal is measured on data: pass data=...")
        measuring = {"metric": metric, "tokenizer": tokenizer, "text_column": text_column}
        return _compressed_to(model, data, goal, out, entropy_coding, workers, measuring)
    if metric is not None:
        raise InputError("a metric is what a goal is about: pass goal=tauten.Goal(...) too")
    path = _checked_out(out, entropy_coding)
    recipe = compression_recipe(technique or "share_kmeans", where, knobs)
    recipe = replace(recipe, entropy_coding=entropy_coding or recipe.entropy_coding)
    original = None if teacher is None else open_source(teacher)
    source, data = UserData(data, tokenizer, text_column).opened(model, original)
    return _apply(source, recipe, path, data, original, workers)


def _compressed_to(
    model: ModelLike,
    data: Any,
    goal: Goal,
    out: str | os.PathLike[str] | None,
    entropy_coding: bool,
    workers: int | str | None,
    measuring: dict[str, Any],
) -> nn.Module:
    options: dict[str, Any] = {"entropy_coding": entropy_coding, "workers": workers, **measuring}
    result = optimize(model, data, goal, pillars=("compress",), out=out, **options)
    _log.info("compressed by %s: %s", result.recipe, result.reason)
    if result.model is not None:
        return result.model
    if out is None:
        raise InputError("the model doesn't fit memory whole: pass out=FOLDER")
    return load(out)


def optimize(
    model: ModelLike,
    data: Any = "python-docs",
    goal: Goal | None = None,
    *,
    metric: str | Metric | Callable[[nn.Module, Any], Any] | None = None,
    pillars: tuple[str, ...] = ("quantize", "compress"),
    out: str | os.PathLike[str] | None = None,
    seed: int = 0,
    max_tokens: int = 8192,
    entropy_coding: bool = False,
    max_time_s: float | None = None,
    workers: int | str | None = None,
    effort: str = "normal",
    tokenizer: Any = None,
    text_column: str | None = None,
) -> Result:
    """Find the best model that meets a goal, and prove it on data it wasn't chosen on.

    Args:
        model: As for `quantize`.
        data: Text for models with a tokenizer: a file or folder (.txt, .md, .json, .jsonl, .csv,
            .tsv, .parquet, also compressed), a name of the datasets library, or a list of strings,
            rows or chats. Else an iterable of tensor batches or rows, such as a DataLoader: inputs,
            (inputs, targets), or a dict of keywords; inputs are as many as the model requires.
        goal: Limits and what to minimize; by default the smallest size within a 1% drop.
        metric: A function (model, batch) -> number or one number an example, higher is better; a
            `tauten.Metric` says more of it, such as that it is a loss. By default what fits the
            outputs and targets, said in a line before the search: perplexity of language models,
            `accuracy`, `r2`, `rank_correlation`, `box_f1`, `loss`, `word_error_rate`, `similarity`
            or `agreement` with the original. It must find a ruined copy of the model worse.
        pillars: Whose techniques to try.
        out: Folder to write. A killed run goes on when the same call is made again; where metric,
            data, goal or versions have changed, what they touch is measured anew.
        seed: Deals data out to calibration, development and test.
        max_tokens: Most tokens a split of text.
        entropy_coding: As for `quantize`; sizes are those of the coded files.
        max_time_s: Time in which to find, certify and write the best, as far as that can be told
            ahead; one recipe is always tried. A killed run that goes on has it anew.
        workers: Processes of this machine, or a cluster as for `distribute`, that try recipes side
            by side; the result is the same. Unused with a limit on time or a goal of latency.
        effort: `quick`, `normal` or `thorough`: how much a further trial must promise for the work
            that it takes. The result says what a thorough search would probably bring.
        tokenizer: As for `quantize`.
        text_column: As for `quantize`.
    Returns:
        The model and what is known of it. If nothing meets the goal, the nearest miss and why.
    Raises:
        InputError: Model, data or metric don't serve.
        GoalError: The goal contradicts itself or can't fit this machine.
    """
    if goal is not None and not isinstance(goal, Goal):
        raise InputError(f"goal is {goal!r}: expected such as tauten.Goal(max_drop=0.01)")
    known = ({"quantize"}, {"compress"}, {"quantize", "compress"})
    if not isinstance(pillars, tuple | list | set) or set(pillars) not in known:
        raise InputError(f"pillars={pillars!r}: expected a tuple of quantize, compress, or both")
    wanted = effort_named(effort)
    path = _checked_out(out, entropy_coding)
    check_out(path)  # before minutes are spent on loading
    source, data = UserData(data, tokenizer, text_column).opened(model)
    chosen = (goal or Goal(), pillars, render_html, metric, path, seed, max_tokens)
    with _by_itself():
        result = run_search(source, data, *chosen, entropy_coding, max_time_s, workers, wanted)
    if result.model is None:
        return result
    return replace(result, model=source.delivered(result.model))


def load(path: str | os.PathLike[str], model: ModelLike | None = None) -> nn.Module:
    """Load what Tauten wrote.

    Args:
        path: The folder.
        model: What it was made from, needed only where that was a module or factory.
    Returns:
        A callable module, with `generate` for language models; bit-equal to what was measured.
    Raises:
        InputError: It is no such folder, or `model` is needed.
        CorruptError: A file changed since it was written.
    """
    source = artifact.source(given_path("path", path), model)
    return source.delivered(source.open())


def _apply(
    source: Source,
    recipe: Recipe,
    out: Path | None,
    data: Any = None,
    teacher: Source | None = None,
    workers: int | str | None = None,
) -> nn.Module:
    options: dict[str, Any] = {"data": data, "teacher": teacher, "workers": workers}
    with _by_itself():
        result = run_recipe(source, recipe, render_html, out, **options)
    assert result.model is not None, "it was asked for"
    return source.delivered(result.model)


@contextlib.contextmanager
def _by_itself() -> Iterator[None]:
    """Whatever whoever calls has switched on in torch.

    Without autocast, in which solvers would compute in 16 bits, nor its cache, which is emptied
    where the outermost autocast ends, this one: training below would go on with its first weights.
    Without inference mode, in which nothing can be trained, nor a default device.
    """
    with (
        torch.autocast("cpu", enabled=False, cache_enabled=False),
        torch.inference_mode(False),
        torch.device("cpu"),
    ):
        yield


def _checked_out(out: str | os.PathLike[str] | None, entropy_coding: bool) -> Path | None:
    if out is None and entropy_coding:
        raise InputError("entropy_coding makes the file smaller, not the model: pass out=FOLDER")
    return None if out is None else given_path("out", out)
