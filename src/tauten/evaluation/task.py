"""Turn a user's data into examples, splits and a metric."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from tauten.core.errors import InputError
from tauten.core.figures import plural
from tauten.core.printing import logger
from tauten.data.documents import Document
from tauten.data.plain_models import is_plain, plain_batches
from tauten.data.reading import texts_for
from tauten.data.splits import Splits, split
from tauten.data.tensors import Rows, call_model, listed, load_rows, rows_of
from tauten.data.windows import (
    TokenBatch,
    count_tokens,
    encoder_batches,
    judged_window,
    positions,
    token_batches,
    used,
)
from tauten.evaluation.fitting import Kind, fitting, of_speech
from tauten.evaluation.identity import identity
from tauten.evaluation.metrics import MODEL_ERRORS, Measure, Perplexity
from tauten.evaluation.ranking import RankCorrelation
from tauten.evaluation.targets import group_ids, has_targets
from tauten.evaluation.tensor_metrics import Similarity
from tauten.evaluation.transcripts import WordErrors
from tauten.evaluation.user_metric import Metric, grouped
from tauten.models.batch import misfit
from tauten.models.source import Source
from tauten.models.structure import find_structure

_log = logger(__name__)


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
    tunes: bool = True,
) -> Task:
    """Split data and choose a metric.

    Args:
        source: Of the model; its tokenizer is used for text.
        model: Tells a language model from others; its tensors may be empty.
        data: Text as `read_texts` takes it, or an iterable of tensor batches as `load_rows` does.
        metric: A name, a `Metric`, or a function (model, batch) -> number or one number an
            example, higher is better. By default perplexity for language models on text, else
            what `fitting` finds.
        seed: Deals examples out to splits.
        max_tokens: Most tokens a split of text.
        tunes: As for `split`.
    Raises:
        InputError: The data doesn't serve this model or metric.
    """
    data, is_text = listed(data)
    if is_text:
        return _text_task(source, model, data, metric, seed, max_tokens, tunes)
    return _tensor_task(source, model, data, metric, seed)


def _text_task(
    source: Source,
    model: nn.Module,
    data: Any,
    metric: Any,
    seed: int,
    max_tokens: int,
    tunes: bool,
) -> Task:
    own = None if metric is None or isinstance(metric, str) else as_metric(metric)
    if own is not None and own.named:
        raise InputError(f"groups of {own.named} are those of rows; documents are units of text")
    read, tokenizer = texts_for(source, data)
    parts = split(read.documents, [document.name for document in read.documents], seed, tunes)
    counts = {key: len(value) for key, value in vars(parts).items()}
    tokens: dict[str, int] = {}
    kinds: dict[str, Kind] = {Similarity.name: Similarity}
    noun = "document"
    if is_plain(model):
        splits = _batched(parts, lambda part: plain_batches(part, tokenizer, model))
        counts = {key: sum(map(rows_of, value)) for key, value in vars(splits).items()}
        judged = (splits.development or splits.test)[0]
        kinds, noun = _fitting(source, model, judged, isinstance(metric, str)), "window"
    elif is_language_model(model):
        splits = _windows(parts, tokenizer, min(512, positions(model)), max_tokens)
        counts = {key: _heard(value) for key, value in vars(splits).items()}
        tokens = {key: count_tokens(value) for key, value in vars(splits).items()}
        kinds = {Perplexity.name: Perplexity}
    else:
        splits = _batched(parts, lambda part: encoder_batches(part, tokenizer, model))
    chosen = _named(metric, kinds) if own is None else lambda: own
    return Task(chosen, splits, read.name, counts, tokens, bool(tokens), noun)


def _batched(
    parts: Splits[Document], make: Callable[[Sequence[Document]], Sequence[Any]]
) -> Splits[Any]:
    """The batches of each part; none of an empty one."""
    return Splits(*(tuple(make(part)) if part else () for part in vars(parts).values()))


def _windows(
    parts: Splits[Document], tokenizer: Any, longest: int, max_tokens: int
) -> Splits[TokenBatch]:
    """Windows of at most `longest` tokens, shorter where a part is judged by them."""
    made: dict[str, tuple[TokenBatch, ...]] = dict.fromkeys(vars(parts), ())
    for key, part in vars(parts).items():
        if part:
            judges = key != "calibration"
            window = judged_window(len(part), max_tokens, longest) if judges else longest
            made[key] = tuple(token_batches(part, tokenizer, window, max_tokens))
            _log.info("%s: %s", key, used(made[key], len(part)))
    return Splits(**made)


def _heard(batches: Sequence[TokenBatch]) -> int:
    """How many documents gave a window."""
    return len({document for batch in batches for document in batch.documents.tolist()})


def _tensor_task(source: Source, model: nn.Module, data: Any, metric: Any, seed: int) -> Task:
    own = metric if metric is None or isinstance(metric, str) else as_metric(metric)
    rows = load_rows(data, model, as_given=isinstance(own, Metric))
    groups = own.groups if isinstance(own, Metric) else None
    kept = _distinct(rows)
    units = [[row] for row in kept]
    if groups is not None:
        units = _grouped(kept, [group_ids(groups, batch) for batch in rows.take(kept)])
    noun = "example" if groups is None else "group"
    parts = split(units, [str(unit[0]) for unit in units], seed, noun=noun)
    splits = Splits(*(tuple(rows.take([*chain(*part)])) for part in vars(parts).values()))
    counts = {key: len(value) for key, value in vars(parts).items()}
    if isinstance(own, Metric) and not own.named:
        return Task(lambda: own, splits, "tensors", counts, {}, False, noun)
    first = splits.development[0]
    if isinstance(first, tuple) and len(first) == 3 and has_targets(first):
        _log.warning(
            "data: the third part of each batch, such as weights of examples, isn't used: pass "
            "metric= for one that does"
        )
    kinds = _fitting(source, model, first, own is not None)
    name = own.named if isinstance(own, Metric) else own
    kind = _named(name, kinds, groups)
    if groups is not None and name != RankCorrelation.name:
        kind = partial(grouped, kind, groups)
    return Task(kind, splits, "tensors", counts, {}, False, noun)


def _distinct(rows: Rows) -> list[int]:
    """Rows without those that repeat an earlier one in all values: they would count twice."""
    if rows.leaves is None:
        contents = [identity(batch).encode() for batch in rows.batches]
    else:
        contents = rows.contents()
    first = {content: row for row, content in reversed([*enumerate(contents)])}
    kept = sorted(first.values())
    if len(kept) < len(contents):
        again = plural(len(contents) - len(kept), "example")
        _log.warning("data: %s left out, the same as others", again)
    return kept


def _grouped(rows: Sequence[int], ids: Sequence[Tensor]) -> list[list[int]]:
    """Rows of each group."""
    groups: dict[int, list[int]] = {}
    for row, group in zip(rows, torch.cat(list(ids)).tolist(), strict=True):
        groups.setdefault(group, []).append(row)
    return list(groups.values())


def _fitting(source: Source, skeleton: nn.Module, batch: Any, is_named: bool) -> dict[str, Kind]:
    """Metrics that fit what the model returns for a batch, by name."""
    speech = of_speech(skeleton, batch, source.tokenizer)
    blocks = find_structure(skeleton).blocks if source.reader else ()
    model = source.open(blocks, stream=bool(blocks))
    try:
        with torch.inference_mode():
            returned = call_model(model, batch)
            kinds = fitting(batch, returned, is_named)
    except MODEL_ERRORS as error:
        raise InputError(f"the model can't be called on this data: {misfit(error)}") from error
    return kinds if speech is None else {WordErrors.name: speech, **kinds}


def as_metric(metric: Any) -> Metric:
    """A user's metric, perhaps given as a bare function."""
    return metric if isinstance(metric, Metric) else Metric(metric)


def _named(name: str | None, kinds: dict[str, Kind], groups: Any = None) -> Callable[[], Measure]:
    """The metric of a name, or the first of those that serve this model and data."""
    if name is None:
        return next(iter(kinds.values()))
    if name == RankCorrelation.name and (groups is not None or name in kinds):
        return partial(RankCorrelation, groups)
    if name not in kinds:
        raise InputError(
            f"metric {name!r} doesn't serve this model and data; "
            f"expected {' or '.join(kinds)}, or a function (model, batch) -> number"
        )
    return kinds[name]
