"""Candidates beside the original: quality on each split, divergence, latency."""

import functools
import math
from collections.abc import Sequence
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers.pytorch_utils import Conv1D

from tauten.core.errors import InputError, first_line
from tauten.core.figures import format_number, plural
from tauten.core.journal import Journal
from tauten.core.measurement import Measurement, Quality
from tauten.evaluation.divergence import Divergence, batches_within
from tauten.evaluation.latency import compare_latency
from tauten.evaluation.metrics import MODEL_ERRORS, Measure, Perplexity, Scores
from tauten.evaluation.statistics import CONFIDENCE, FEWEST_UNITS, shared_confidence
from tauten.evaluation.task import Task
from tauten.evaluation.unigram import say_if_no_better
from tauten.models.loader import Loader
from tauten.models.packing import packed_modules, write_out
from tauten.models.source import shared_copy
from tauten.models.structure import packable_modules
from tauten.runtime.modules import PackedLinear
from tauten.search.candidate import Candidate, packed
from tauten.search.trust import check_chance, check_metric
from tauten.search.workspace import Workspace, recipe_id


class Evaluator:
    """Measures the candidates of one run; what it found is in the journal.

    Args:
        workspace: Keeps the journal.
        task: What quality means and where it is measured.
        stream: Load blocks one at a time.
        timed: Also measure latency.
        unit: Of drops, as `Goal.drop_unit`.
    Attributes:
        looks: Candidates that may be measured; the bounds of all of them hold together.
        ruined: What a ruined copy of the original loses, once it was tried.
    """

    def __init__(self, workspace: Workspace, task: Task, stream: bool, timed: bool, unit: str = ""):
        self._workspace, self._task, self._stream, self._timed = workspace, task, stream, timed
        self.unit = unit
        self.ruined = math.inf
        self.looks = 1
        self._metric = task.metric()
        self._divergence: Divergence | None = None
        self._original: Scores | None = None
        self._original_model: nn.Module | None = None

    def certify(self, candidate: Candidate) -> Quality:
        """Measure a candidate on the sealed test split, once a run."""
        metric, batches = self._task.metric(), self._task.splits.test
        metric.prepare(self.original(), batches)
        before = self._scores("test original", metric, self.original, batches)
        name = f"test {recipe_id(candidate.recipe)}"
        after = self._scores(name, metric, self.open(candidate), batches)
        return self._quality(before, after, "test", CONFIDENCE)

    def measure(self, candidate: Candidate) -> Measurement:
        """Measure a candidate on the development split."""
        assert self._original is not None
        model = self.open(candidate)
        if self._task.is_text and not self._timed:
            compute_densely(model, self._stream)
        batches = self._task.splits.development
        name = f"development {recipe_id(candidate.recipe)}"
        scores = self._scores(name, self._metric, model, batches)
        confidence = shared_confidence(self.looks)
        quality = self._quality(self._original, scores, "development", confidence)
        divergence = self._reference_divergence()
        latency = original_latency = None
        if self._timed:
            latency, original_latency = self._time(model if candidate.recipe.steps else None)
        return Measurement(
            quality=quality,
            size_bytes=candidate.weights.size_bytes,
            memory_bytes=candidate.memory_bytes,
            kl=float(divergence.of(model).mean()) if divergence else None,
            latency_s=latency,
            original_latency_s=original_latency,
        )

    def partial_kl(self, candidate: Candidate, names: Sequence[str]) -> float | None:
        """KL of the original with some layers as a candidate has them; None where it can't be had.

        Args:
            candidate: Of which layers are taken.
            names: Of the layers; those that are tied to them come along.
        """
        divergence = self._reference_divergence()
        if divergence is None:
            return None
        source, structure = self._workspace.source, self._workspace.structure
        model = (
            source.open(structure.blocks, True) if self._stream else shared_copy(self.original())
        )
        # What the store holds isn't coded yet: nothing is to be decoded for each group anew.
        plain = packed(candidate.dense, candidate.specs, candidate.parts, candidate.store)
        theirs = plain.skeleton()
        loader = plain.loader(theirs, candidate.blocks)
        weights = {id(model.get_submodule(name).weight) for name in names}
        parts: dict[str, list[tuple[str, nn.Module]]] = {}
        for name, module in packable_modules(model):
            if id(module.weight) in weights:
                parts.setdefault(structure.block_of(name), []).append((name, module))
        for part, layers in parts.items():
            put = functools.partial(_put, loader, theirs, part, layers)
            if self._stream and part:  # whenever it has been loaded; it is freed by its own hook
                model.get_submodule(part).register_forward_pre_hook(lambda *_, put=put: put())
            else:
                put()
        return float(divergence.of(model).mean())

    def _time(self, model: nn.Module | None) -> tuple[float, float]:
        """Latency of a candidate, None for the original itself, and of the original."""
        example = self._task.splits.development[0]
        models = {"original": self.original()}
        if model is not None:
            models["candidate"] = model
        times = compare_latency(models, example, self._task.is_text)
        return times.get("candidate", times["original"]).median_s, times["original"].median_s

    @property
    def is_known(self) -> bool:
        """Whether the journal holds what the original scores."""
        return self._workspace.journal.find("scores", of="development original") is not None

    def start(self) -> None:
        """Measure the original, if that hasn't been done.

        Raises:
            InputError: It can't be measured on this data.
        """
        if self._original is not None:
            return
        batches, metric = self._task.splits.development, self._metric
        try:
            metric.prepare(self.original(), batches)
            self._original = self._scores("development original", metric, self.original, batches)
        except MODEL_ERRORS as error:
            reason = first_line(error)
            raise InputError(
                f"{metric.name} can't be measured on the original with this data: {reason}"
            ) from error
        self._check_metric()

    def _check_metric(self) -> None:
        """Refuse a metric that can't tell a good model from a bad one, once a run."""
        metric, journal = self._metric, self._workspace.journal
        assert self._original is not None
        splits, batches = self._task.splits, self._task.splits.development
        if isinstance(metric, Perplexity):
            say_if_no_better(metric.value(self._original), splits.calibration, batches)
            return
        known = journal.find("trusted", unit=self.unit)
        if known is None:
            open_model = self._workspace.source.open
            self.ruined = check_metric(metric, self._original, open_model, batches, self.unit)
            new = self._task.metric()
            check_chance(new, self._original, self.original(), batches, self.unit)
            journal.add("trusted", unit=self.unit, ruined=self.ruined)
        else:
            self.ruined = known["ruined"]

    def announcement(self) -> str:
        """By what quality is measured, and on how much, in a line."""
        assert self._original is not None
        metric, scores = self._metric, self._original.total / self._original.weight
        better = "higher" if metric.higher_is_better else "lower"
        units = self._task.counted("development", len(scores))
        on = plural(len(scores), f"independent {units}")
        said = f"quality is {metric.name} ({metric.meaning}), {better} is better"
        said += f"; the original's is {format_number(metric.value(self._original))} on {on}"
        if len(scores) < FEWEST_UNITS:
            return f"{said}: too few for a certificate"
        alike = bool((scores == scores[0]).all())
        return f"{said}{', the same on each' * alike}; certified on as many others"

    def _reference_divergence(self) -> Divergence | None:
        if not self._task.is_text:
            return None
        if self._divergence is None:
            model = self.original()
            vocabulary = int(model.config.vocab_size)  # type: ignore[union-attr, arg-type]
            batches = batches_within(self._task.splits.development, vocabulary)
            self._divergence = Divergence(model, batches)
        return self._divergence

    def original(self) -> nn.Module:
        """The original, ready to be called; opened once."""
        if self._original_model is None:
            blocks = self._workspace.structure.blocks
            self._original_model = self._workspace.source.open(blocks, self._stream)
        return self._original_model

    def open(self, candidate: Candidate) -> nn.Module:
        """A candidate, ready to be called."""
        return candidate.source.open(candidate.blocks, self._stream)

    def _quality(self, before: Scores, after: Scores, split: str, confidence: float) -> Quality:
        metric = self._metric
        drop = metric.drop(before, after, confidence, self.unit)
        values = metric.value(after), metric.value(before)
        counted = self._task.counted(split, drop.examples)
        return Quality(metric.name, *values, drop, split, metric.higher_is_better, counted)

    def _scores(self, name: str, metric: Measure, model: Any, batches: Sequence[Any]) -> Scores:
        return journaled_scores(self._workspace.journal, name, metric, model, batches)


def compute_densely(model: nn.Module, stream: bool) -> None:
    """Multiply by dense weights where activations are floating: long texts are scored faster.

    The certificate is of the packed model as it is served; here figures are compared with each
    other, and kernels differ from dense products by how they round activations alone.

    Args:
        model: Packed; changed in place.
        stream: Its weights come and go, so that each call makes its own.
    """
    layers = {n: layer for n, layer in packed_modules(model) if layer.activation == "float"}
    if not stream:
        write_out(model, layers)
        return
    for layer in layers.values():
        if isinstance(layer, PackedLinear):
            layer.multiply = MethodType(_multiply_densely, layer)  # type: ignore[method-assign]


def _multiply_densely(layer: PackedLinear, x: Tensor) -> Tensor:
    return linear(x, layer.packed.dequantize(layer.dtype_like.dtype), layer.bias)


def _put(
    loader: Loader, theirs: nn.Module, part: str, layers: Sequence[tuple[str, nn.Module]]
) -> None:
    """Give layers of a part the weights that a packed model has for them, dequantized."""
    loader.load(part)
    for name, module in layers:
        weight = getattr(theirs.get_submodule(name), "packed", None)
        if weight is not None:  # else it was kept as it is
            values = weight.dequantize().to(module.weight.dtype)
            values = values.t() if isinstance(module, Conv1D) else values
            module._parameters["weight"] = nn.Parameter(values, requires_grad=False)
    loader.free(part)


def journaled_scores(
    journal: Journal, name: str, metric: Measure, model: Any, batches: Sequence[Any]
) -> Scores:
    """Scores from the journal, or measured and journaled; floats survive JSON exactly.

    Args:
        model: The model, or a function without arguments that opens it.
    """
    known = journal.find("scores", of=name)
    if known is None:
        scores = metric.scores(model if isinstance(model, nn.Module) else model(), batches)
        total, weight = scores.total.tolist(), scores.weight.tolist()
        journal.add("scores", of=name, total=total, weight=weight)
        return scores
    recorded = torch.tensor(known["total"], dtype=torch.float64)
    return Scores(recorded, torch.tensor(known["weight"], dtype=torch.float64))
