"""Run the techniques of a recipe that train: with their teacher, their data, and a folder."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from tauten.core.coverage import NEGLIGIBLE
from tauten.core.errors import InputError, first_line
from tauten.core.figures import format_percent, plural
from tauten.core.printing import logger
from tauten.core.recipe import Recipe
from tauten.core.technique import TuningTechnique
from tauten.models.batch import MISFITS
from tauten.models.calibration import CalibrationBatch
from tauten.models.records import PRUNED, zero_share
from tauten.models.source import Source
from tauten.models.structure import packable_modules
from tauten.models.training import working_folder
from tauten.search.asking import ask_workers

_log = logger(__name__)


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
        before = _zeros(model)
        technique.tune(model, teacher, batches, folder)
        _say_lost(technique, before, _zeros(model))


def check_same_inputs(
    student: Source, teacher: Source, batches: Iterable[CalibrationBatch]
) -> None:
    """Raise InputError where student or teacher can't take the data.

    Both are called once, on a row; of all batches at hand the tokens are compared with the tables.
    """
    known = list(batches) if isinstance(batches, Sequence) else []
    largest = max((int(t.max()) for batch in known for t in _tokens(batch)), default=-1)
    for who, source in (("student", student), ("teacher", teacher)):
        model = source.open()
        table = getattr(model, "get_input_embeddings", lambda: None)()
        if isinstance(table, nn.Embedding) and largest >= table.num_embeddings:
            raise InputError(
                f"{who}: {source.name} knows {table.num_embeddings:,} tokens, and the data holds "
                f"token {largest}; student and teacher need the same vocabulary"
            )
        for row in (batch.split(1)[0] for batch in known[:1]):
            try:
                with torch.no_grad():
                    row.call(model)
            except MISFITS as error:
                raise InputError(
                    f"{who}: {source.name} can't be called on this data ({first_line(error)}); "
                    "student and teacher need the same kinds of inputs"
                ) from None


def _tokens(batch: CalibrationBatch) -> list[Tensor]:
    """What is looked up in a table of tokens."""
    named = batch.kwargs.get("input_ids", next(iter(batch.args), None))
    is_ids = isinstance(named, Tensor) and not named.is_floating_point() and named.numel()
    return [named] if isinstance(named, Tensor) and is_ids else []


def _zeros(model: nn.Module) -> dict[str, float]:
    """Shares of zeros, by name, of the dense layers that came pruned."""
    shares = {name: zero_share(layer.weight.detach()) for name, layer in packable_modules(model)}  # type: ignore[operator]
    return {name: share for name, share in shares.items() if share >= PRUNED}


def _say_lost(
    technique: TuningTechnique, before: dict[str, float], after: dict[str, float]
) -> None:
    lost = [name for name, share in before.items() if after.get(name, 0) < (1 - NEGLIGIBLE) * share]
    if lost:
        name, remedy = lost[0], "; keep_zeros=True keeps them" * hasattr(technique, "keep_zeros")
        _log.warning(
            "%s filled zeros of %s that came pruned: %s of %s was zero, %s is now%s",
            *(technique.name, plural(len(lost), "layer"), format_percent(before[name]), name),
            *(format_percent(after.get(name, 0)), remedy),
        )


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
