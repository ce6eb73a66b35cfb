"""Ask workers what a technique's teacher says, before the training that needs it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from tauten.compression.comparison import Comparison, Outputs, in_dtype
from tauten.core.progress import track
from tauten.core.technique import Questions
from tauten.distributed.blueprint import model_of, open_model
from tauten.distributed.cluster import Cluster
from tauten.distributed.job import Job
from tauten.distributed.start import engine_for
from tauten.models.batch import CalibrationBatch
from tauten.models.source import Source
from tauten.models.targets import Targets

KIND = "tauten.search.asking:TeacherWorker"


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


def ask_workers(questions: Questions, teacher: Source, folder: Path, workers: int | str) -> None:
    """Put the teacher's answers where the training looks for them.

    Answers that are there from a killed run aren't asked for again; those for which there is no
    room the training asks itself.

    Args:
        questions: Of a technique.
        teacher: Workers open it.
        folder: That the technique works in.
        workers: On this machine, or the name of a cluster.
    """
    targets = Targets(folder / questions.folder)
    missing = [index for index in questions.batches if not targets.holds(index)]
    if not missing:
        return
    with engine_for(model_of(teacher), workers) as (reference, engine):
        job = Job(KIND, {"model": reference, **questions.settings})
        batches = (vars(questions.batches[index]) for index in missing)
        answers = Cluster(engine).run(job, batches, len(missing))
        for index in track(missing, "asking the teacher", len(missing)):
            if not targets.put(index, next(answers)):
                answers.close()
                return
