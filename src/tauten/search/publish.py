"""From a chosen candidate to a folder that is whole, or a model in memory."""

import math
import os
import platform
import shutil
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tauten.core.digests import sealed
from tauten.core.errors import BusyError
from tauten.core.files import (
    make_folder,
    sha256_file,
    sync_files,
    sync_folder,
    write_json,
    write_text,
    writing,
)
from tauten.core.goal import Goal
from tauten.core.measurement import Result, Trial
from tauten.core.printing import logger
from tauten.core.recipe import DataSplit, Recipe
from tauten.core.version import __version__
from tauten.evaluation.footprint import resident_bytes
from tauten.evaluation.latency import compare_latency
from tauten.evaluation.task import Task
from tauten.models import artifact, covered
from tauten.models.artifact import packed_source
from tauten.models.outline import layers_of
from tauten.models.reader import SafetensorsReader
from tauten.models.source import Source
from tauten.search.candidate import Candidate
from tauten.search.loop import Search
from tauten.search.workspace import recipe_id

STAGING = "artifact"
TIMED = ("latency_s", "original_latency_s")
_log = logger(__name__)
Render = Callable[[dict[str, Any], dict[str, Any]], str]


@dataclass
class Facts:
    """What the manifest says of a run beside its result.

    Attributes:
        source: Of the original.
        render: Makes the HTML report from manifest and timing.
        model: Its skeleton, for counting parameters.
        task: Data and metric; None where nothing was measured.
        goal: Of the run.
        seed: Of the run.
        chosen: Index of the chosen trial.
        timing: As `timing.json` holds it.
        written_out: Packed layers that are loaded as dense ones.
        more_bytes: Of memory that this takes.
        max_tokens: Of a split of text.
        levels: What each unit takes and is estimated to lose at each level; None where it wasn't
            found out.
    """

    source: Source
    render: Render
    model: nn.Module
    task: Task | None = None
    goal: Goal | None = None
    seed: int = 0
    chosen: int | None = None
    timing: dict[str, Any] = field(default_factory=dict)
    written_out: tuple[str, ...] = ()
    more_bytes: int = 0
    levels: dict[str, Any] | None = None
    max_tokens: int = 0

    def replayed(self, recipe: Recipe) -> Recipe:
        """A recipe that says how data was dealt out, if its techniques looked at some."""
        if self.task is None or not recipe.looks_at_data:
            return recipe
        return replace(recipe, split=DataSplit(self.seed, self.max_tokens))


def finish(
    folder: Path, out: Path | None, candidate: Candidate, facts: Facts, result: Result, load: bool
) -> Result:
    """Write the artifact if there is an output folder, and load the model.

    Args:
        folder: Of the run.
        out: The artifact; it appears whole, by one rename.
        candidate: What was chosen.
        facts: For the manifest.
        result: Completed by this call.
        load: Put the model into the result.
    """
    manifest = _finite(make_manifest(candidate, facts, result))
    result.original, result.timing = manifest["source"], facts.timing
    if out is not None:
        _publish(folder, out, candidate, facts, manifest)
        result.path = str(out)
    if load:
        reader = candidate.source.reader
        if out is not None:
            reader = SafetensorsReader([out / artifact.WEIGHTS])
        assert reader is not None
        packed = packed_source(candidate.dense, candidate.specs, reader, str(out or "candidate"))
        result.model = replace(packed, written_out=facts.written_out).open()
    return result


def make_manifest(candidate: Candidate, facts: Facts, result: Result) -> dict[str, Any]:
    """The manifest; equal runs give equal manifests, so nothing timed is in it."""
    source, parameters = facts.source, sum(p.numel() for p in facts.model.parameters())
    return {
        "tauten": __version__,
        "format": artifact.FORMAT,
        "source": {
            "name": source.name,
            "kind": source.kind,
            "fingerprint": source.fingerprint,
            "size_bytes": source.size_bytes,
            "bf16_bytes": 2 * parameters,
            "parameters": parameters,
        },
        "recipe": facts.replayed(result.recipe).to_dict(),
        "recipe_text": str(result.recipe),
        "cautions": result.recipe.cautions,
        "goal": asdict(facts.goal) if facts.goal else None,
        "weights": {"file": artifact.WEIGHTS, "size_bytes": candidate.weights.size_bytes},
        "memory_bytes": candidate.memory_bytes + facts.more_bytes,
        "shaping": list(candidate.shaping),
        "structure": list(candidate.dense.structure),
        "made_from": layers_of(facts.model) if source.kind in ("module", "factory") else None,
        "modules": candidate.specs,
        "written_out": list(facts.written_out),
        "layers": [asdict(layer) for layer in result.layers],
        "levels": facts.levels,
        "trials": [_trial_facts(trial) for trial in result.trials],
        "chosen": facts.chosen,
        "reverted": _without_figures(facts.timing.get("formats", [])),
        "certified": result.certified,
        "reason": result.reason,
        "test": asdict(result.test) if result.test else None,
        "data": facts.task.facts() if facts.task else None,
        "seed": facts.seed,
    }


def time_candidate(search: Search, candidate: Candidate) -> dict[str, Any]:
    """Latencies of the original and the candidate in one alternated run.

    They are journaled: a resumed run must decide on the same figures.
    """
    journal, name = candidate.journal, recipe_id(candidate.recipe)
    known = journal.find("timed", of=name)
    if known is not None:
        return {key: known[key] for key in ("unit", "original", "chosen", "machine")}
    models = {"original": search.evaluator.original(), "chosen": search.evaluator.open(candidate)}
    example = search.task.splits.development[0]
    times = compare_latency(models, example, search.task.is_text)
    facts = {name: latency.facts() for name, latency in times.items()}
    unit = "token" if search.task.is_text else "call"
    timing = {"unit": unit, **facts, "machine": machine()}
    journal.add("timed", of=name, **timing)
    return timing


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    return {
        "cpu": _cpu_name(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "tauten": __version__,
    }


def _publish(
    folder: Path, out: Path, candidate: Candidate, facts: Facts, manifest: dict[str, Any]
) -> None:
    """Build the artifact beside its place, then rename it there."""
    if os.path.lexists(out):
        # Only a run that was killed between its rename and its clean-up finds its own artifact.
        if candidate.journal.find("published") and artifact.is_artifact(out):
            return
        raise BusyError(f"{out} appeared while the run was going; move it away and run again")
    staging = folder / STAGING
    shutil.rmtree(staging, ignore_errors=True)
    make_folder(staging)
    candidate.weights.write(staging / artifact.WEIGHTS)
    manifest["weights"]["sha256"] = sha256_file(staging / artifact.WEIGHTS)
    candidate.dense.save_companions(staging)
    if candidate.dense.left_behind:
        _log.info("%s: not copied along: %s", facts.source.name, candidate.dense.left_behind)
    write_text(staging / artifact.RECIPE, facts.replayed(candidate.recipe).to_yaml())
    manifest["files"] = covered.digests(staging)
    write_json(staging / artifact.MANIFEST, sealed(manifest))
    if "chosen" in facts.timing and facts.task is not None and facts.task.is_text:
        _add_footprints(facts.timing, {"original": facts.source.name, "chosen": str(staging)})
    write_json(staging / artifact.TIMING, sealed(facts.timing))
    write_text(staging / artifact.REPORT, facts.render(manifest, facts.timing))
    with writing(out):
        sync_files(staging)  # libraries wrote some of them
        candidate.journal.add("published")
        os.rename(staging, out)
        sync_folder(out.parent)


def _add_footprints(timing: dict[str, Any], models: dict[str, str]) -> None:
    """Resident memory of each model in a fresh process, None where that process failed."""
    with ThreadPoolExecutor(len(models)) as pool:  # side by side: most of it is starting up
        found = {name: pool.submit(resident_bytes, model) for name, model in models.items()}
    for name, future in found.items():
        try:
            timing[name]["rss_bytes"] = future.result()
        except subprocess.CalledProcessError as error:
            # One figure less; never a run that is lost at its last step.
            _log.warning("the memory of the %s wasn't measured: %s", name, error)
            timing[name]["rss_bytes"] = None


def _finite(value: Any) -> Any:
    """The same data with NaN and infinity as None, which JSON can hold."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _trial_facts(trial: Trial) -> dict[str, Any]:
    facts = {**asdict(trial), "recipe": trial.recipe.to_dict(), "label": trial.recipe.brief}
    for name in TIMED if facts["measurement"] else ():
        del facts["measurement"][name]
    return facts


def trial_times(trials: list[Trial]) -> list[dict[str, float | None]]:
    """Latencies of trials for `timing.json`; empty for one that wasn't measured."""
    measured = [asdict(trial)["measurement"] or {} for trial in trials]
    return [{name: facts[name] for name in TIMED if name in facts} for facts in measured]


def _without_figures(formats: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Which formats dropped out; how long they took stands in `timing.json`."""
    return [{key: row[key] for key in ("layer", "format", "instead")} for row in formats]


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
