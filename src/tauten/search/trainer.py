"""Run the techniques of a recipe that train: with their teacher, their data, and a folder."""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from tauten.core.errors import InputError
from tauten.core.recipe import Recipe
from tauten.core.technique import TuningTechnique
from tauten.models.calibration import CalibrationBatch
from tauten.models.source import Source
from tauten.models.training import working_folder
from tauten.search.asking import ask_workers

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Trainer:
    """What techniques that train learn from.

    Attributes:
        teacher: The model to imitate.
        calibration: The few batches of data that techniques calibrate on.
        training: All data.
        workers: That run the teacher for techniques that can ask it beforehand; as for
            `engine_for`.
    """

    teacher: Source
    calibration: Sequence[CalibrationBatch]
    training: Iterable[CalibrationBatch]
    workers: int | str | None = None

    def run(
        self, techniques: Sequence[TuningTechnique], model: nn.Module, folder: Path | None = None
    ) -> None:
        """Train a model in place, one technique after another.

        Args:
            techniques: Of a recipe.
            model: A copy, in memory whole.
            folder: Where a killed run finds how far it came.
        Raises:
            InputError: There is no data to train on.
        """
        for index, technique in enumerate(techniques, 1):
            if not self.calibration:
                raise InputError(f"{technique.name} needs data: pass data=...")
            batches = self.training if technique.wants_all_data else self.calibration
            own = None if folder is None else folder / f"{index} {technique.name}"
            with working_folder(own) as place:
                self._tune(technique, model, batches, place)

    def _tune(
        self,
        technique: TuningTechnique,
        model: nn.Module,
        batches: Iterable[CalibrationBatch],
        folder: Path,
    ) -> None:
        teacher = self.teacher.open()
        if self.workers is not None:
            questions = technique.questions(model, teacher, batches)
            if questions is None:
                _log.info("%s trains in this process alone", technique.name)
            else:
                ask_workers(questions, self.teacher, folder, self.workers)
        technique.tune(model, teacher, batches, folder)


def trained_by(recipe: Recipe) -> list[TuningTechnique]:
    """All techniques of a recipe that train, wherever they stand in it."""
    techniques = (step.technique for step in recipe.steps)
    return [t for t in techniques if isinstance(t, TuningTechnique)]


def check_teacher(student: Source, teacher: Source, recipe: Recipe) -> None:
    """Raise InputError for a teacher that nothing learns from, or that reads text otherwise."""
    if not trained_by(recipe):
        raise InputError(
            f"teacher: {recipe} imitates no model; leave it out, or add a distillation"
        )
    if student.tokenizer is None or teacher.tokenizer is None:
        return
    ours, theirs = student.tokenizer().get_vocab(), teacher.tokenizer().get_vocab()
    if ours != theirs:
        raise InputError(
            f"teacher: {teacher.name} reads text into other tokens than {student.name}; "
            "pass a teacher with the same vocabulary"
        )
