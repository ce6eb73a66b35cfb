"""What `distribute` returns: a module that is called like the model."""

import contextlib
import functools
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from pathlib import Path
from typing import Any

import torch

from tauten.core.files import exclusive
from tauten.core.progress import progress_bars, track
from tauten.core.version import __version__
from tauten.data.windows import TokenBatch
from tauten.distributed.cluster import Cluster
from tauten.distributed.job import Job
from tauten.distributed.record import Record
from tauten.evaluation.metrics import Perplexity, Scores
from tauten.evaluation.tensor_metrics import Accuracy
from tauten.parallel.closing import InferenceOnWorkers
from tauten.parallel.data_parallel import TRIAL
from tauten.parallel.module import arguments
from tauten.parallel.row_cuts import RowCuts, call_in_parts
from tauten.parallel.rows import place_of, to_device


class Workers:
    """A cluster and the model for it.

    Args:
        cluster: Of workers.
        model: For them, as `open_model` takes it.
        cuts: What is known of cutting calls of it.
        release: Called when they have ended.
    """

    def __init__(
        self,
        cluster: Cluster,
        model: Any,
        cuts: RowCuts,
        release: Callable[[], Any] = lambda: None,
    ):
        self.cuts = cuts
        self.cluster, self.settings, self._release = cluster, {"model": model}, release
        self.job = Job("tauten.distributed.inference:Inference", self.settings)

    def close(self) -> None:
        """End them."""
        self.cluster.close()
        self._release()


class DistributedModule(InferenceOnWorkers):
    """A model that each worker of a cluster holds, called like the model, for inference.

    It is a context manager; `close` ends the workers.

    Nothing is started on this machine before the first call.

    Args:
        starter: Starts the workers, at their first use.
        name: Of the model.
        fingerprint: Tells the model from others; called where results are kept.
        config: The model's, if it has one.
        closers: What ends workers that are there already.
        model: Says what calls take, where it is a module.
    Attributes:
        config: The model's.
    """

    _takes: Any

    def __init__(
        self,
        starter: Callable[[], Workers],
        name: str,
        fingerprint: Callable[[], str],
        config: Any = None,
        closers: Sequence[Callable[[], Any]] = (),
        model: Any = None,
    ):
        super().__init__()
        vars(self)["_takes"] = model  # no part of this module
        self.config, self._name, self._fingerprint = config, name, fingerprint
        self._starter, self._lock = starter, threading.Lock()
        self._turn = threading.Lock()  # threads call one after the other
        self._workers: Workers | None = None
        self._closers.extend(closers)

    @property
    def cluster(self) -> Cluster:
        """The workers; they are started if they aren't yet."""
        return (self._workers or self._started()).cluster

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As the model's; the batch is cut among the workers by rows."""
        self._say_of_cache(self.config, kwargs)
        with self._calling(args, kwargs), self._turn:
            workers = self._started()
            cluster, job = workers.cluster, workers.job
            cluster.load(job)

            def compute(calls: Any, lend: bool, method: str = "forward") -> list[Any]:
                return list(cluster.run(job, [(method, *call) for call in calls], len(calls)))

            trial, copies = functools.partial(compute, method=TRIAL), len(cluster.workers)
            call = (args, kwargs)
            made = call_in_parts(workers.cuts, compute, call, copies, trial=trial)
            return to_device(made, place_of(call))

    def wait_for(self, workers: int) -> None:
        """Wait until so many workers hold the model; calls begin with those that are ready."""
        started = self._started()
        started.cluster.load(started.job, workers)

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """As the model's, by one worker."""
        with self._calling(args, kwargs), self._turn:
            workers = self._started()
            made = next(workers.cluster.run(workers.job, [("generate", args, kwargs)], 1))
            return to_device(made, place_of((args, kwargs)))

    def map(self, inputs: Iterable[Any], folder: str | Path | None = None) -> Iterator[Any]:
        """Outputs for a stream of inputs, in order, each computed whole by one worker.

        An output doesn't depend on which worker computes it nor on how many there are.

        Args:
            inputs: Tensors, dicts of keywords, or (inputs, targets) pairs.
            folder: Where outputs are kept, so that the same call goes on after a kill of this
                process; inputs must then be the same in the same order.
        Raises:
            InputError: The folder holds results of other inputs.
            BusyError: It holds those of another model, or another process fills it.
            DiskError: The disk refuses.
        """
        total = len(inputs) if isinstance(inputs, Sized) else None
        calls = (("forward", *self._checked(arguments(item, self._takes))) for item in inputs)
        with contextlib.ExitStack() as stack:
            record = None
            if folder is not None:
                place = Path(folder).absolute()
                stack.enter_context(exclusive(place))
                record = Record(place, self._run_id())
            workers = self._started()
            stack.enter_context(progress_bars())
            results = workers.cluster.run(workers.job, calls, total, record)
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
        batches, workers = list(batches), self._started()
        settings = {**workers.settings, "metric": metric}
        job = Job("tauten.distributed.inference:Scoring", settings)
        payloads = [vars(b) if isinstance(b, TokenBatch) else b for b in batches]
        found = list(workers.cluster.run(job, payloads, len(payloads)))
        if metric == "perplexity":
            return Perplexity().value(Perplexity.gathered(batches, found))
        total, weight = (torch.cat(column) for column in zip(*found, strict=True))
        return Accuracy().value(Scores(total, weight))

    def extra_repr(self) -> str:
        if self._workers is None:
            return f"{self._name}, whose workers start with the first call"
        workers, cuts = len(self._workers.cluster.workers), self._workers.cuts
        return f"{self._name} on {workers} workers" + (cuts.refusal and f"; {cuts.refusal}")

    def _started(self) -> Workers:
        self._check_open()
        with self._lock:
            if self._workers is None:
                self._workers = self._starter()
                if self._workers.close not in self._closers:
                    self._closers.append(self._workers.close)
            return self._workers

    def _run_id(self) -> dict[str, Any]:
        """What tells a run that goes on from another."""
        return {"version": __version__, "model": self._fingerprint()}
