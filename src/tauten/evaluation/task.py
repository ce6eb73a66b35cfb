"""Turn a user's data into examples, splits and a metric."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from tauten.core.errors import InputError
from tauten.data.splits import Splits, split
from tauten.data.tensors import listed, load_rows
from tauten.data.texts import load_texts
from tauten.data.windows import count_tokens, encoder_batches, token_batches
from tauten.evaluation.metrics import Accuracy, Metric, Perplexity, Similarity, UserMetric
from tauten.models.source import Source


@dataclass(frozen=True)
class Task:
    """What a model is measured on.

    Attributes:
        metric: Makes a metric; each split has one of its own, which may remember the original.
        splits: Batches by purpose.
        name: Of the data.
        documents: Independent examples by split.
        tokens: Real tokens by split; empty for data that isn't text.
        is_text: Batches are `TokenBatch`.
    """

    metric: Callable[[], Metric]
    splits: Splits[Any]
    name: str
    documents: dict[str, int]
    tokens: dict[str, int]
    is_text: bool

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
    metric: "str | Callable[[nn.Module, Any], Any] | None" = None,
    seed: int = 0,
    max_tokens: int = 8192,
) -> Task:
    """Split data and choose a metric.

    Args:
        source: Of the model; its tokenizer is used for text.
        model: Tells a language model from others; its tensors may be empty.
        data: Text as `load_texts` takes it, or an iterable of tensor batches as `load_rows` does.
        metric: `perplexity`, `accuracy`, `similarity`, or a function (model, batch) -> number or
            one number an example. By default perplexity for language models on text, accuracy
            for (inputs, integer targets), else similarity to the original's output.
        seed: Deals examples out to splits.
        max_tokens: Most tokens a split of text.
    Raises:
        InputError: The data doesn't serve this model or metric.
    """
    data, is_text = listed(data)
    if is_text:
        return _text_task(source, model, data, metric, seed, max_tokens)
    return _tensor_task(data, metric, seed)


def _text_task(
    source: Source, model: nn.Module, data: Any, metric: Any, seed: int, max_tokens: int
) -> Task:
    if source.tokenizer is None:
        raise InputError(
            f"{source.name} has no tokenizer, so it can't read text; pass tensor batches as data"
        )
    chosen = _metric(metric, Perplexity if is_language_model(model) else Similarity)
    documents = load_texts(data)
    parts = split(documents, [document.name for document in documents], seed)
    tokenizer, name = source.tokenizer(), str(data) if isinstance(data, str | Path) else "texts"
    counts = {key: len(value) for key, value in vars(parts).items()}
    if not is_language_model(model):
        splits = Splits(*(tuple(encoder_batches(part, tokenizer)) for part in vars(parts).values()))
        return Task(chosen, splits, name, counts, {}, False)
    limit = getattr(getattr(model, "config", None), "max_position_embeddings", None) or 512
    window = min(512, limit)
    batches = {
        key: tuple(token_batches(part, tokenizer, window, max_tokens))
        for key, part in vars(parts).items()
    }
    tokens = {key: count_tokens(value) for key, value in batches.items()}
    return Task(chosen, Splits(**batches), name, counts, tokens, True)


def _tensor_task(data: Any, metric: Any, seed: int) -> Task:
    rows = load_rows(data)
    indices = list(range(len(rows)))
    parts = split(indices, [str(i) for i in indices], seed)
    splits = Splits(*(tuple(rows.take(part)) for part in vars(parts).values()))
    counts = {key: len(value) for key, value in vars(parts).items()}
    first = splits.development[0]
    labelled = (
        isinstance(first, tuple | list)
        and len(first) == 2
        and first[1].dim() == 1
        and not first[1].is_floating_point()
    )
    chosen = _metric(metric, Accuracy, Similarity) if labelled else _metric(metric, Similarity)
    return Task(chosen, splits, "tensors", counts, {}, False)


def _metric(metric: Any, *serving: Callable[[], Metric]) -> Callable[[], Metric]:
    """The metric asked for, or the first of those that serve this model and data."""
    if metric is None:
        return serving[0]
    if not isinstance(metric, str):
        return lambda: UserMetric(metric)
    named = {kind().name: kind for kind in serving}
    if metric not in named:
        raise InputError(
            f"metric {metric!r} doesn't serve this model and data; "
            f"expected {' or '.join(named)}, or a function (model, batch) -> number"
        )
    return named[metric]
