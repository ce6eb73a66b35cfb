"""Trials that workers make before the loop asks for them: the same trials, in less time."""

import contextlib
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from typing import Any

from tauten.core.recipe import Recipe
from tauten.distributed.blueprint import model_of
from tauten.distributed.cluster import Cluster
from tauten.distributed.job import Job
from tauten.distributed.start import engine_for
from tauten.evaluation.task import Task
from tauten.search.evaluator import Evaluator
from tauten.search.trial_worker import plain_task, portable_metric
from tauten.search.workspace import Workspace, recipe_id

KIND = "tauten.search.trial_worker:TrialWorker"


class Ahead:
    """Recipes that the loop will probably try, tried side by side.

    The loop takes them in its own order, as if it had tried them one after the other; what it
    doesn't get to is dropped.

    Args:
        cluster: The workers.
        job: Of `trial_worker`.
        workspace: That files and journal entries go to.
        evaluator: Knows how many candidates bounds must hold together for.
    """

    def __init__(self, cluster: Cluster, job: Job, workspace: Workspace, evaluator: Evaluator):
        self._cluster, self._job = cluster, job
        self._workspace, self._evaluator = workspace, evaluator
        self._order: deque[Recipe] = deque()
        self._results: Generator[Any, None, None] | None = None

    def wait_for(self, workers: int) -> None:
        """Wait until so many workers are ready; trials begin with those that are."""
        self._cluster.load(self._job, workers)

    def expect(self, recipes: Sequence[Recipe]) -> None:
        """What will be asked for, in this order unless the loop thinks better of it."""
        journal = self._workspace.journal
        new = [r for r in recipes if journal.find("trial", trial=recipe_id(r)) is None]
        self._order = deque(new)
        if self._results is not None:
            self._results.close()
        payloads = ((recipe.to_dict(), self._evaluator.looks) for recipe in new)
        self._results = self._cluster.run(self._job, payloads, len(new), ahead=False)

    def take(self, recipe: Recipe) -> dict[str, Any] | None:
        """What a recipe came to, its files in the workspace; None if it wasn't expected."""
        if recipe not in self._order:
            return None
        if self._order[0] != recipe:
            self.expect(list(self._order)[self._order.index(recipe) :])
        self._order.popleft()
        assert self._results is not None, "something is expected"
        made: dict[str, Any] = next(self._results)
        self._workspace.adopt(made)
        return made


@contextlib.contextmanager
def trials_ahead(
    workspace: Workspace,
    evaluator: Evaluator,
    task: Task,
    stream: bool,
    workers: int | str | None,
) -> Iterator[Ahead | None]:
    """Workers for a search; None without any.

    Args:
        workspace: Of the run.
        evaluator: Of the run, which has measured the original.
        task: Of the run.
        stream: As for `Evaluator`.
        workers: On this machine, or the name of a cluster as for `tauten.distribute`.
    """
    if workers is None:
        yield None
        return
    found = "scores", "trusted"  # by the run: workers needn't measure the original again
    known = [entry for entry in workspace.journal.entries if entry["event"] in found]
    settings = {"task": plain_task(task), "stream": stream, "known": known}
    settings |= {"metric": portable_metric(task), "unit": evaluator.unit}
    with engine_for(model_of(workspace.source), workers) as (reference, engine):
        job = Job(KIND, {"model": reference, **settings})
        yield Ahead(Cluster(engine), job, workspace, evaluator)
