"""Calibration batches from whatever the user has."""

import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tauten.core.errors import InputError
from tauten.core.figures import plural
from tauten.core.printing import logger
from tauten.data.calls import as_call, parameters_of
from tauten.data.items import ItemReader
from tauten.data.plain_models import is_plain, plain_batches
from tauten.data.reading import is_read_anew, texts_for
from tauten.data.splits import shuffled
from tauten.data.tensors import ROWS_PER_BATCH, Rows, listed, load_rows
from tauten.data.windows import (
    TokenBatch,
    encoder_batches,
    is_encoder_decoder,
    positions,
    token_batches,
    used,
)
from tauten.models.calibration import CalibrationBatch
from tauten.models.source import Source

_log = logger(__name__)
CALIBRATION_TOKENS = 32768
WINDOW = 512
BATCH_TOKENS = 2048
TRAINING_TOKENS = 8192  # in a batch that techniques cut to the size they step by


def calibration_batches(batches: Sequence[Any], model: nn.Module) -> list[CalibrationBatch]:
    """Calls of a model from batches of tokens or tensors, padding masked out."""
    # A cache is of no use for whole texts, and takes memory.
    options = {"use_cache": False} if "use_cache" in parameters_of(model).named else {}
    return [_call(model, batch, options) for batch in batches]


def load_calibration(
    source: Source, model: nn.Module, data: Any, max_tokens: int | None = CALIBRATION_TOKENS
) -> list[CalibrationBatch]:
    """Read data all of which may be calibrated on.

    Args:
        source: Of the model; its tokenizer reads text.
        model: Its skeleton, whose configuration limits the length of a window.
        data: Text as `read_texts` takes it, or an iterable of tensor batches.
        max_tokens: Most tokens of text that are used; None for all.
    Raises:
        InputError: The data doesn't serve this model.
    """
    data, is_text = listed(data)
    if not is_text:
        rows = load_rows(data, model)
        return calibration_batches(rows.take(range(len(rows)), _rows_per_batch(rows)), model)
    texts, tokenizer = texts_for(source, data)
    documents = texts.documents
    if is_plain(model):
        return calibration_batches(plain_batches(documents, tokenizer, model), model)
    documents = tuple(documents[i] for i in shuffled([document.name for document in documents]))
    if hasattr(model, "generate") and not is_encoder_decoder(model):
        window = min(WINDOW, positions(model))
        batch_tokens = TRAINING_TOKENS if max_tokens is None else BATCH_TOKENS
        limits = (window, max_tokens or sys.maxsize, batch_tokens)
        batches = token_batches(documents, tokenizer, *limits)
        _log.info("calibration: %s", used(batches, len(documents)))
        return calibration_batches(batches, model)
    starts = encoder_batches(documents, tokenizer, model, max_tokens or sys.maxsize)
    heard, given = sum(len(row["input_ids"]) for row in starts), plural(len(documents), "document")
    _log.info("calibration: the starts of %d of %s", heard, given)
    return calibration_batches(starts, model)


class Passes:
    """Calls of a model from an iterable of tensor batches that is read anew in each pass.

    So what it draws at random, such as crops and flips of images, is new in each pass.

    Args:
        data: Such as a DataLoader.
        model: As for `calibration_batches`.
    """

    def __init__(self, data: Iterable[Any], model: nn.Module):
        self._data, self._model = data, model
        self._reader: ItemReader | None = None

    def __iter__(self) -> Iterator[CalibrationBatch]:
        is_empty = True
        for item in self._data:
            self._reader = self._reader or ItemReader.of(item, self._model)
            is_empty = False
            yield from calibration_batches(self._reader.read(item), self._model)
        if is_empty:
            raise InputError(
                "data gave no batches when it was read again: pass a list, or an iterable that "
                "begins anew, such as a DataLoader"
            )


def load_training(source: Source, model: nn.Module, data: Any) -> Iterable[CalibrationBatch]:
    """All data, for techniques that train; arguments and errors as for `load_calibration`.

    Returns:
        A list; `Passes` where the data may give other batches each time it is read.
    """
    if is_read_anew(data):
        return Passes(data, model)
    return load_calibration(source, model, data, max_tokens=None)


def _rows_per_batch(rows: Rows) -> int:
    """Rows that make a batch: long texts are large."""
    tokens = [
        leaf.shape[1]
        for leaf in rows.leaves or ()
        if isinstance(leaf, Tensor) and leaf.dim() == 2 and not leaf.is_floating_point()
    ]
    length = max(tokens, default=1)
    return min(ROWS_PER_BATCH, max(1, BATCH_TOKENS // max(1, length)))


def _call(model: nn.Module, batch: Any, options: dict[str, Any]) -> CalibrationBatch:
    if isinstance(batch, TokenBatch):
        real = batch.lengths[:, None] > torch.arange(batch.ids.shape[1])
        return CalibrationBatch((), {"input_ids": batch.ids, **options}, real)
    call = as_call(model, batch)
    features = call.args[0] if call.args and isinstance(call.args[0], dict) else call.kwargs
    mask = features.get("attention_mask")
    kwargs = {**call.kwargs, **options}
    return CalibrationBatch(call.args, kwargs, None if mask is None else mask.bool())
