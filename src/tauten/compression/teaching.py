"""Workers that run the teacher: a distillation's batches are shared out among them."""

from collections.abc import Sequence
from typing import Any

import torch

from tauten.compression.comparison import Comparison, Outputs, in_dtype
from tauten.distributed.blueprint import open_model
from tauten.models.batch import CalibrationBatch

KIND = "tauten.compression.teaching:TeacherWorker"


class TeacherWorker:
    """The job of answering batches as the student's training would ask them.

    Args:
        model: The teacher, as `open_model` takes it.
        blocks: Of the teacher, whose outputs are compared.
        parts: As for `Comparison`.
        dtype: Name of the dtype that products are computed in.
    """

    def __init__(self, model: Any, blocks: Sequence[str], parts: Sequence[str], dtype: str):
        self._comparison = Comparison(tuple(parts), getattr(torch, dtype))
        self._teacher = in_dtype(open_model(model), self._comparison.dtype)
        self._blocks = blocks

    def __call__(self, payload: dict[str, Any]) -> Outputs:
        """Answer a batch, given as its `vars`."""
        batch = CalibrationBatch(**payload)
        return self._comparison.answer(self._teacher, self._blocks, batch)
