"""What `distribute` returns: a module that is called like the model."""

import weakref
from collections.abc import Callable, Iterable, Iterator, Sized
from pathlib import Path
from typing import Any

import torch

from tauten.core.progress import progress_bars, track
from tauten.core.version import __version__
from tauten.data.windows import TokenBatch
from tauten.distributed.cluster import Cluster
from tauten.distributed.job import Job
from tauten.distributed.record import Record
from tauten.evaluation.metrics import Accuracy, Perplexity, Scores
from tauten.parallel.closing import ModuleOnWorkers
from tauten.parallel.module import arguments
from tauten.parallel.rows import count_rows, cut_rows, even_sizes, join_rows


class DistributedModule(ModuleOnWorkers):
    """A model that each worker of a cluster holds, called like the model, for inference.

    It is a context manager; `close` ends the workers.

    Args:
        cluster: Closed with the module.
        model: For workers, as `open_model` takes it.
        name: Of the model.
        fingerprint: Tells the model from others; called where results are kept.
        config: The model's, if it has one.
        release: Called when it is closed.
    Attributes:
        cluster: The workers.
        config: The model's.
    """

    def __init__(
        self,
        cluster: Cluster,
        model: Any,
        name: str,
        fingerprint: Callable[[], str],
        config: Any = None,
        release: Callable[[], None] = lambda: None,
    ):
        super().__init__()
        self.cluster, self.config = cluster, config
        self._settings, self._name, self._fingerprint = {"model": model}, name, fingerprint
        self._job = Job("tauten.distributed.inference:Inference", self._settings)
        self._close = weakref.finalize(self, _end, cluster, release)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As the model's; the batch is cut among the workers by rows."""
        self.cluster.load(self._job)
        rows = count_rows((args, kwargs))
        sizes = [n for n in even_sizes(rows, len(self.cluster.workers)) if n] or [0]
        parts = cut_rows((args, kwargs), sizes)
        calls = [("forward", *part) for part in parts]
        return join_rows(list(self.cluster.run(self._job, calls, len(calls))), sizes)

    def wait_for(self, workers: int) -> None:
        """Wait until so many workers hold the model; calls begin with those that are ready."""
        self.cluster.load(self._job, workers)

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """As the model's, by one worker."""
        return next(self.cluster.run(self._job, [("generate", args, kwargs)], 1))

    def map(self, inputs: Iterable[Any], folder: str | Path | None = None) -> Iterator[Any]:
        """Outputs for a stream of inputs, in order, each computed whole by one worker.

        An output doesn't depend on which worker computes it nor on how many there are.

        Args:
            inputs: Tensors, dicts of keywords, or (inputs, targets) pairs.
            folder: Where outputs are kept, so that the same call goes on after a kill of this
                process; inputs must then be the same in the same order.
        Raises:
            InputError: The folder holds results of other inputs.
            BusyError: It holds those of another model.
        """
        total = len(inputs) if isinstance(inputs, Sized) else None
        record = None if folder is None else Record(Path(folder), self._run_id())
        calls = (("forward", *arguments(item)) for item in inputs)
        with progress_bars():
            results = self.cluster.run(self._job, calls, total, record)
            yield from track(results, "computing", total or 0)

    def evaluate(self, batches: Iterable[Any], metric: Any = "perplexity") -> float:
        """A metric over batches that are dealt out to the workers.

        Args:
            batches: `TokenBatch`es for perplexity, else (inputs, targets).
            metric: `perplexity`, `accuracy`, or, with workers of this machine, a function (model,
                batch) -> number or one number an example.
        Returns:
            The same number, bit for bit, as one machine computes from these batches.
        """
        batches = list(batches)
        job = Job("tauten.distributed.inference:Scoring", {**self._settings, "metric": metric})
        payloads = [vars(b) if isinstance(b, TokenBatch) else b for b in batches]
        found = list(self.cluster.run(job, payloads, len(payloads)))
        if metric == "perplexity":
            return Perplexity().value(Perplexity.gathered(batches, found))
        total, weight = (torch.cat(column) for column in zip(*found, strict=True))
        return Accuracy().value(Scores(total, weight))

    def extra_repr(self) -> str:
        return f"{self._name} on {len(self.cluster.workers)} workers"

    def _run_id(self) -> dict[str, Any]:
        """What tells a run that goes on from another."""
        return {"version": __version__, "model": self._fingerprint()}


def _end(cluster: Cluster, release: Callable[[], None]) -> None:
    cluster.close()
    release()
