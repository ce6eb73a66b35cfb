"""Turn a user's data into examples, splits and a metric."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tauten.core.errors import InputError, first_line
from tauten.data.splits import Splits, split
from tauten.data.tensors import call_model, listed, load_rows, main_output
from tauten.data.texts import load_texts
from tauten.data.windows import (
    count_tokens,
    encoder_batches,
    judged_window,
    positions,
    token_batches,
    used,
)
from tauten.evaluation.metrics import MODEL_ERRORS, Mean, Measure, Perplexity
from tauten.evaluation.tensor_metrics import Similarity, fitting
from tauten.evaluation.user_metric import Metric, group_ids
from tauten.models.source import Source
from tauten.models.structure import find_structure

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Task:
    """What a model is measured on.

    Attributes:
        metric: Makes a metric; each split has one of its own, which may remember the original.
        splits: Batches by purpose.
        name: Of the data.
        documents: Independent examples by split, those that were used.
        tokens: Real tokens by split; empty for data that isn't text.
        is_text: Batches are `TokenBatch`.
        noun: What an independent example is.
    """

    metric: Callable[[], Measure]
    splits: Splits[Any]
    name: str
    documents: dict[str, int]
    tokens: dict[str, int]
    is_text: bool
    noun: str = "example"

    def counted(self, split: str, units: int) -> str:
        """What so many scores of a split are one each of: `noun`, or batches."""
        batches = len(getattr(self.splits, split))
        by_batch = units == batches < self.documents.get(split, 0)
        return "batch" if by_batch else self.noun

    def facts(self) -> dict[str, Any]:
        """Plain data for the manifest."""
        return {"name": self.name, "documents": self.documents, "tokens": self.tokens}


def is_language_model(model: nn.Module) -> bool:
    """Whether a model predicts the next token, as transformers' ...ForCausalLM and LMHead do."""
    config = getattr(model, "config", None)
    named = any(word in type(model).__name__ for word in ("CausalLM", "LMHeadModel"))
    return config is not None and named


def make_task(
    source: Source,
    model: nn.Module,
    data: Any,
    metric: "str | Metric | Callable[[nn.Module, Any], Any] | None" = None,
    seed: int = 0,
    max_tokens: int = 8192,
) -> Task:
    """Split data and choose a metric.

    Args:
        source: Of the model; its tokenizer is used for text.
        model: Tells a language model from others; its tensors may be empty.
        data: Text as `load_texts` takes it, or an iterable of tensor batches as `load_rows` does.
        metric: A name, a `Metric`, or a function (model, batch) -> number or one number an
            example, higher is better. By default perplexity for language models on text; for
            tensors `accuracy` or `r2` where there are targets, else `similarity` to the
            original's outputs (`agreement` where they are single numbers).
        seed: Deals examples out to splits.
        max_tokens: Most tokens a split of text.
    Raises:
        InputError: The data doesn't serve this model or metric.
    """
    data, is_text = listed(data)
    if is_text:
        return _text_task(source, model, data, metric, seed, max_tokens)
    return _tensor_task(source, model, data, metric, seed)


def _text_task(
    source: Source, model: nn.Module, data: Any, metric: Any, seed: int, max_tokens: int
) -> Task:
    if source.tokenizer is None:
        raise InputError(
            f"{source.name} has no tokenizer, so it can't read text; pass tensor batches as data, "
            "or the folder that holds model and tokenizer"
        )
    chosen = _metric(metric, Perplexity if is_language_model(model) else Similarity)
    documents = load_texts(data)
    parts = split(documents, [document.name for document in documents], seed)
    tokenizer, name = source.tokenizer(), str(data) if isinstance(data, str | Path) else "texts"
    counts = {key: len(value) for key, value in vars(parts).items()}
    if not is_language_model(model):
        splits = Splits(
            *(tuple(encoder_batches(part, tokenizer, model)) for part in vars(parts).values())
        )
        return Task(chosen, splits, name, counts, {}, False, "document")
    longest, batches = min(512, positions(model)), {}
    for key, part in vars(parts).items():
        judges = key != "calibration"
        window = judged_window(len(part), max_tokens, longest) if judges else longest
        batches[key] = tuple(token_batches(part, tokenizer, window, max_tokens))
        _log.info("%s: %s", key, used(batches[key], len(part)))
        counts[key] = len(torch.cat([batch.documents for batch in batches[key]]).unique())
    tokens = {key: count_tokens(value) for key, value in batches.items()}
    return Task(chosen, Splits(**batches), name, counts, tokens, True, "document")


def _tensor_task(source: Source, model: nn.Module, data: Any, metric: Any, seed: int) -> Task:
    rows = load_rows(data)
    own = metric if metric is None or isinstance(metric, str) else as_metric(metric)
    groups = own.groups if isinstance(own, Metric) else None
    units = [[row] for row in range(len(rows))]
    if groups is not None:
        units = _grouped([group_ids(groups, batch) for batch in rows.take(range(len(rows)))])
    parts = split(units, [str(i) for i in range(len(units))], seed)
    splits = Splits(*(tuple(rows.take([*chain(*part)])) for part in vars(parts).values()))
    counts = {key: len(value) for key, value in vars(parts).items()}
    first = splits.development[0]
    serving = [] if isinstance(own, Metric) else _fitting(source, model, first, own is not None)
    noun = "example" if groups is None else "group"
    return Task(_metric(own, *serving), splits, "tensors", counts, {}, False, noun)


def _grouped(ids: Sequence[Tensor]) -> list[list[int]]:
    """Rows of each group."""
    groups: dict[int, list[int]] = {}
    for row, group in enumerate(torch.cat(list(ids)).tolist()):
        groups.setdefault(group, []).append(row)
    return list(groups.values())


def _fitting(source: Source, skeleton: nn.Module, batch: Any, is_named: bool) -> list[type[Mean]]:
    """Metrics that fit what the model returns for a batch."""
    blocks = find_structure(skeleton).blocks if source.reader else ()
    model = source.open(blocks, stream=bool(blocks))
    try:
        with torch.inference_mode():
            output = main_output(call_model(model, batch))
    except MODEL_ERRORS as error:
        reason = first_line(error)
        raise InputError(f"the model can't be called on this data: {reason}") from error
    return fitting(batch, output, is_named)


def as_metric(metric: Any) -> Metric:
    """A user's metric, perhaps given as a bare function."""
    return metric if isinstance(metric, Metric) else Metric(metric)


def _metric(metric: Any, *serving: Callable[[], Measure]) -> Callable[[], Measure]:
    """The metric asked for, or the first of those that serve this model and data."""
    if metric is None:
        return serving[0]
    if not isinstance(metric, str):
        own = as_metric(metric)
        return lambda: own
    named = {kind().name: kind for kind in serving}
    if metric not in named:
        raise InputError(
            f"metric {metric!r} doesn't serve this model and data; "
            f"expected {' or '.join(named)}, or a function (model, batch) -> number"
        )
    return named[metric]
