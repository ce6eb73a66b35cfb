"""One run from a source to an artifact: forecast, search, certificate, timing, files."""

import hashlib
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from torch import nn

from tauten.core.coverage import changed_sentence, zeros_sentence
from tauten.core.effort import NORMAL, THOROUGH, Effort
from tauten.core.errors import GoalError, InputError
from tauten.core.figures import format_bytes
from tauten.core.goal import Goal
from tauten.core.measurement import LayerRecord, Result
from tauten.core.printing import logger
from tauten.core.progress import progress_bars
from tauten.core.recipe import Recipe
from tauten.core.technique import WeightTechnique
from tauten.data.calibration import calibration_batches, load_calibration, load_training
from tauten.evaluation.identity import identity
from tauten.evaluation.task import Task, make_task
from tauten.models.calibration import CalibrationBatch
from tauten.models.generation import use_native_decoder
from tauten.models.packing import write_out
from tauten.models.saving import refuse_saving
from tauten.models.source import Source
from tauten.models.structure import find_structure
from tauten.models.walk import Walk
from tauten.search.ahead import trials_ahead
from tauten.search.blocks import can_assign, pack_on_workers
from tauten.search.calibrating import calibrating
from tauten.search.candidate import Candidate
from tauten.search.certificate import conclude
from tauten.search.dense import slow_candidate_layers, slow_pruned_layers
from tauten.search.folder import run_folder
from tauten.search.forecast import Forecast, forecast
from tauten.search.ladder import LEVELS
from tauten.search.loop import ORIGINAL, Search
from tauten.search.proposals import MOST
from tauten.search.publish import (
    Facts,
    Render,
    finish,
    machine,
    time_candidate,
    trial_times,
)
from tauten.search.resume import VERSIONS
from tauten.search.shaping import shape_in_memory
from tauten.search.trainer import Trainer, check_same_inputs, check_teacher, trained_by
from tauten.search.workspace import Workspace, recipe_id
from tauten.search.zeros import share_out_zeros

KEEPS_ZEROS = "to keep them, pack by tauten.PruneSparseGPT(sparsity, bits=4), or to 8 bits"
_log = logger(__name__)


def run_search(
    source: Source,
    data: Any,
    goal: Goal,
    pillars: tuple[str, ...],
    render: Render,
    metric: Any = None,
    out: Path | None = None,
    seed: int = 0,
    max_tokens: int = 8192,
    entropy_coding: bool = False,
    max_time_s: float | None = None,
    workers: int | str | None = None,
    effort: Effort = NORMAL,
) -> Result:
    """Find the best model within a goal; see `tauten.optimize`."""
    skeleton = source.skeleton()
    structure = find_structure(skeleton)
    task = make_task(source, skeleton, data, metric, seed, max_tokens)
    tokens = task.tokens.get("development", task.documents["development"])
    needs = forecast(source, skeleton, structure, len(LEVELS) + MOST, tokens, goal)
    announce(needs, time_later=task.is_text and not goal.is_about_latency)
    if max_time_s is not None:
        check_time(max_time_s, forecast(source, skeleton, structure, 1, tokens, goal))
    run = {
        "versions": VERSIONS,
        "source": source.fingerprint,
        "data": _fingerprint(task),
        "metric": task.metric().identity,
        "goal": asdict(goal),
        "pillars": pillars,
        "entropy_coding": entropy_coding,
        "seed": seed,
        "effort": effort.name,
    }
    with progress_bars(), run_folder(out, needs.disk_bytes * (1 + entropy_coding)) as folder:
        calibration = calibration_batches(task.splits.calibration, skeleton)
        workspace = Workspace(folder, source, structure, run, calibration)
        search = Search(workspace, task, goal, needs.stream, entropy_coding, max_time_s, effort)
        development = calibration_batches(task.splits.development, skeleton)
        search.start()  # the workers needn't measure the original again
        side_by_side = None if goal.is_about_latency else workers
        with trials_ahead(workspace, search.evaluator, task, needs.stream, side_by_side) as ahead:
            search.use(ahead)
            chosen = search.run(source.skeleton(), pillars, development)
        search.use(None)
        chosen, candidate, timing = _timed(search, chosen)
        timing |= _left(search)
        result = conclude(search, chosen, candidate, "given_up" in timing)
        announce_coverage(candidate.recipe, candidate.layers)
        facts = Facts(source, render, skeleton, task, goal, seed, chosen, timing)
        facts.max_tokens = max_tokens
        facts.levels = search.table.facts() if search.table else None
        return finish(folder, out, candidate, facts, result, load=not needs.stream)


def _timed(search: Search, chosen: int) -> tuple[int, Candidate, dict[str, Any]]:
    """The chosen trial beside the original; under a latency goal the original if that is faster.

    Returns:
        The trial's index, its candidate, and what `timing.json` says.
    """
    candidate = search.workspace.apply(search.trials[chosen].recipe)
    timing = {} if search.stream else time_candidate(search, candidate)
    if search.guard is None:
        return chosen, candidate, timing
    if candidate.recipe.steps and timing["chosen"]["median_s"] > timing["original"]["median_s"]:
        timing |= {"chosen": dict(timing["original"]), "given_up": timing["chosen"]}
        chosen = [trial.recipe for trial in search.trials].index(ORIGINAL)
        candidate = search.workspace.apply(ORIGINAL)
    timing |= {"formats": search.guard.reverts, "trials": trial_times(search.trials)}
    return chosen, candidate, timing


def _left(search: Search) -> dict[str, Any]:
    """What a thorough search would probably bring, as `timing.json` says it; perhaps nothing."""
    if not search.promised:
        return {}
    seconds = search.work.left_s(THOROUGH) + search.work.done * search.work.pace
    return {"more": {"effort": THOROUGH.name, "gain": search.promised, "time_s": seconds}}


def run_recipe(
    source: Source,
    recipe: Recipe,
    render: Render,
    out: Path | None,
    load: bool = True,
    data: Any = None,
    teacher: Source | None = None,
    workers: int | str | None = None,
) -> Result:
    """Apply one recipe without evaluating it.

    Args:
        source: Of the model.
        recipe: What to apply.
        render: Makes the HTML report from manifest and timing.
        out: Folder to write; None only returns the model.
        load: Return the model too; without it memory stays bounded by one block.
        data: For techniques that look at it, all of it; None for none.
        teacher: What techniques that train imitate; None for the model itself.
        workers: As for `calibrating`.
    """
    if teacher is not None:
        check_teacher(source, teacher, recipe)
    skeleton = source.skeleton()
    structure = find_structure(skeleton)
    reason = "nothing was measured on data, so no drop is claimed"
    for caution in recipe.cautions:
        _log.warning(caution)
    reader = source
    if source.tokenizer is None and teacher is not None:
        reader = replace(source, tokenizer=teacher.tokenizer)
    calibration, training = _read(reader, skeleton, recipe, data)
    if teacher is not None:
        check_same_inputs(source, teacher, training if isinstance(training, list) else calibration)
    trainer = Trainer(teacher or source, calibration, training, workers)
    if out is None and source.reader is None:
        with progress_bars(), calibrating(source, recipe, _for_data(recipe, workers)) as calibrate:
            model = shape_in_memory(source, recipe.shaping, trainer)
            calibrated = calibrate(recipe, calibration)
            structure = find_structure(model)
            recipe = share_out_zeros(recipe, model, structure, None, calibration)
            walk = Walk(model, structure, recipe, calibration=calibrated)
            packed = walk.run().eval()
            trainer.run(recipe.tunings, packed)
            dense = slow_pruned_layers(packed)
        dense.announce()
        announce_coverage(recipe, walk.layers)
        write_out(packed, dense.names)
        packed = refuse_saving(use_native_decoder(packed))
        return Result(packed, recipe, False, reason, [], walk.layers, None)
    needs = forecast(source, skeleton, structure, 0, 0, in_memory=bool(recipe.shaping))
    announce(needs)
    run = {"versions": VERSIONS, "source": source.fingerprint, "recipe": recipe_id(recipe)}
    if calibration:
        fixed = isinstance(training, Sequence)  # else each pass may give other crops or flips
        run["data"] = _digest(training) if fixed else "read anew in each pass"
    if teacher is not None:
        run["teacher"] = teacher.fingerprint
    disk_bytes = needs.disk_bytes * (1 + recipe.entropy_coding)  # plain, and coded beside it
    disk_bytes += len(recipe.shaping) * source.size_bytes  # what each step leaves
    with progress_bars(), run_folder(out, disk_bytes) as folder:
        assigned = workers is not None and can_assign(recipe, skeleton)
        for_data = None if assigned else _for_data(recipe, workers)
        with calibrating(source, recipe, for_data) as calibrate:
            aside = (calibration, trainer, calibrate)
            workspace = Workspace(folder, source, structure, run, *aside)
            if assigned and workers is not None:
                pack_on_workers(workspace, recipe, calibration, workers)
            candidate = workspace.apply(recipe)
        result = Result(None, candidate.recipe, False, reason, [], candidate.layers, None)
        dense = slow_candidate_layers(candidate, recipe_id(recipe))
        dense.announce()
        announce_coverage(candidate.recipe, candidate.layers)
        timing = {"formats": list(dense.reverts), "machine": machine()} if dense.names else {}
        facts = Facts(source, render, skeleton, timing=timing)
        facts.written_out, facts.more_bytes = dense.names, dense.more_bytes
        return finish(folder, out, candidate, facts, result, load)


def _for_data(recipe: Recipe, workers: int | str | None) -> int | str | None:
    """Workers to share calibration data out to: none where they run a teacher for a new shape."""
    return None if recipe.shaping and trained_by(recipe) else workers


def _read(
    source: Source, skeleton: nn.Module, recipe: Recipe, data: Any
) -> tuple[list[CalibrationBatch], Iterable[CalibrationBatch]]:
    """A few batches to calibrate on, and all of them if a technique of the recipe wants that."""
    if data is None:
        if recipe.split is not None:
            raise InputError(
                "this recipe looked at data: pass the same data, or other weights come out; for "
                "those leave out its split"
            )
        return [], []
    if not recipe.looks_at_data:
        _log.warning("data isn't used: %s doesn't look at any", recipe)
    if isinstance(data, Iterator):
        data = list(data)  # it can be read once only
    if recipe.split is not None:
        split = recipe.split
        task = make_task(source, skeleton, data, None, split.seed, split.max_tokens)
        calibration = calibration_batches(task.splits.calibration, skeleton)
        return calibration, calibration
    calibration = load_calibration(source, skeleton, data)
    if not any(technique.wants_all_data for technique in trained_by(recipe)):
        return calibration, calibration
    return calibration, load_training(source, skeleton, data)


def check_time(limit_s: float, least: Forecast) -> None:
    """Refuse a time in which not one recipe could be tried."""
    if limit_s < least.time_s:
        raise GoalError(
            f"max_time_s={limit_s:.0f}: one recipe alone takes about {least.time_s:.0f} s; allow "
            "that much, or pass fewer max_tokens"
        )


def announce_coverage(recipe: Recipe, layers: Sequence[LayerRecord]) -> None:
    """Say which share of the weights a recipe that packs has changed, and zeros that it lost."""
    if any(isinstance(step.technique, WeightTechnique) for step in recipe.steps):
        sentence, warns = changed_sentence(map(asdict, layers))
        _log.log(logging.WARNING if warns else logging.INFO, sentence)
        if lost := zeros_sentence(map(asdict, layers)):
            _log.warning("%s: %s", lost, KEEPS_ZEROS)


def announce(needs: Forecast, time_later: bool = False) -> None:
    """Say what the run will need; `time_later` where the search will say how long it takes."""
    how = ", one block at a time" if needs.stream else ""
    minutes = f"{max(0.1, needs.time_s / 60):.1f} min"
    time = ", its time once the original is measured" if time_later else f", {minutes}"
    memory, disk = format_bytes(needs.memory_bytes), format_bytes(needs.disk_bytes)
    _log.info("forecast: about %s of memory%s, %s of disk%s", memory, how, disk, time)


def _fingerprint(task: Task) -> str:
    """SHA-256 of all batches of all splits."""
    return _digest(batch for part in vars(task.splits).values() for batch in part)


def _digest(batches: Iterable[Any]) -> str:
    return hashlib.sha256("".join(map(identity, batches)).encode()).hexdigest()
