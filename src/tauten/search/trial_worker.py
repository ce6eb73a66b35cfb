"""The job of trying recipes: a worker packs and measures as the loop itself would."""

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from tauten.core.errors import ENDING, told
from tauten.core.recipe import Recipe
from tauten.core.temporary import TemporaryFolder
from tauten.data.calibration import calibration_batches
from tauten.data.splits import Splits
from tauten.data.windows import TokenBatch
from tauten.distributed.blueprint import source_of
from tauten.evaluation.detection import BoxF1
from tauten.evaluation.metrics import Measure, Perplexity
from tauten.evaluation.own_loss import OwnLoss
from tauten.evaluation.task import Task
from tauten.evaluation.tensor_metrics import Accuracy, Agreement, RSquared, Similarity
from tauten.models.structure import find_structure
from tauten.search.evaluator import Evaluator
from tauten.search.techniques import TECHNIQUES
from tauten.search.workspace import Workspace

_KINDS: tuple[type[Measure], ...] = (
    *(Perplexity, Accuracy, RSquared, Agreement, Similarity, BoxF1, OwnLoss),
)
_METRICS = {kind.name: kind for kind in _KINDS}


class TrialWorker:
    """A run's workspace and evaluator of its own, in a folder of its own.

    Args:
        model: As `open_model` takes it.
        task: Of the run, as `plain_task` describes it.
        metric: Its name, or what makes one that isn't known by its name alone.
        stream: As for `Evaluator`.
        unit: As for `Evaluator`.
        known: Journal entries of the run that needn't be found out again.
    """

    def __init__(
        self,
        model: Any,
        task: dict[str, Any],
        metric: str | Callable[[], Measure],
        stream: bool,
        unit: str,
        known: list[dict[str, Any]],
    ):
        source = source_of(model)
        skeleton = source.skeleton()
        own_task = _task(task, metric)
        self._folder = TemporaryFolder()
        calibration = calibration_batches(own_task.splits.calibration, skeleton)
        structure = find_structure(skeleton)
        self._workspace = Workspace(self._folder.path, source, structure, {}, calibration)
        for entry in known:
            self._workspace.journal.add(**entry)
        self._evaluator = Evaluator(self._workspace, own_task, stream, False, unit)
        self._evaluator.start()

    def __call__(self, payload: Any) -> Any:
        """Try a recipe.

        Args:
            payload: The recipe as a dict, and how many candidates bounds must hold together for.
        Returns:
            Its measurement, or the error; what the journal says of it, and its files.
        """
        raw, self._evaluator.looks = payload
        recipe, journal = Recipe.from_dict(raw, TECHNIQUES), self._workspace.journal
        before = len(journal.entries)
        try:
            candidate = self._workspace.apply(recipe)
            measured = asdict(self._evaluator.measure(candidate))
        except ENDING:
            raise
        except Exception as error:  # as for the loop's own trials
            return {"measurement": None, "error": told(error), "entries": [], "files": {}}
        made = self._workspace.handed_out(before)
        self._workspace.discard(recipe)
        return {"measurement": measured, "error": ""} | made


def plain_task(task: Task) -> dict[str, Any]:
    """The splits of a task that trials look at, as trees of tensors."""
    splits = {
        name: [vars(batch) if task.is_text else batch for batch in getattr(task.splits, name)]
        for name in ("calibration", "development")
    }
    return {
        "splits": splits,
        "is_text": task.is_text,
        "documents": task.documents,
        "noun": task.noun,
    }


def portable_metric(task: Task) -> str | Callable[[], Measure]:
    """A task's metric by name; what makes it, where more than a name is to be known."""
    kind = type(task.metric())
    return kind.name if kind in _KINDS else task.metric


def _task(plain: dict[str, Any], metric: str | Callable[[], Measure]) -> Task:
    splits = {
        name: tuple(TokenBatch(**batch) if plain["is_text"] else batch for batch in batches)
        for name, batches in plain["splits"].items()
    }

    make = _METRICS[metric] if isinstance(metric, str) else metric
    parts, documents = Splits(**splits, test=()), plain["documents"]
    return Task(make, parts, "", documents, {}, plain["is_text"], plain["noun"])
