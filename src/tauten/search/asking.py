"""Ask workers what a technique's teacher says, before the training that needs it."""

from pathlib import Path

from tauten.core.progress import track
from tauten.core.technique import Questions
from tauten.distributed.blueprint import model_of
from tauten.distributed.cluster import Cluster
from tauten.distributed.job import Job
from tauten.distributed.start import engine_for
from tauten.models.source import Source
from tauten.models.targets import Targets


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
        job = Job(questions.job, {"model": reference, **questions.settings})
        batches = (vars(questions.batches[index]) for index in missing)
        answers = Cluster(engine).run(job, batches, len(missing))
        for index in track(missing, "asking the teacher", len(missing)):
            if not targets.put(index, next(answers)):
                answers.close()
                return
