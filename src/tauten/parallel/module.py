"""What `parallelize` returns: a module that is called like the model."""

import weakref
from collections.abc import Iterable, Iterator, Sized
from typing import Any

from tauten.core.errors import InputError
from tauten.core.progress import progress_bars, track
from tauten.data.tensors import inputs_of
from tauten.parallel.closing import ModuleOnWorkers
from tauten.parallel.executors import Executor
from tauten.parallel.plan import Plan


class ParallelModule(ModuleOnWorkers):
    """A model on workers, called like the model, for inference.

    Outputs are those of the model in evaluation mode, without gradients, and without a cache of
    keys and values. It is a context manager; `close` ends its workers, and so does the end of the
    process, however it ends.

    Attributes:
        plan: How it is laid out and why, with figures; `plan.save(file)` writes it.
        config: The model's, if it has one.
    """

    def __init__(self, executor: Executor, plan: Plan, config: Any = None):
        super().__init__()
        self.plan, self.config = plan, config
        self._executor = executor
        self._close = weakref.finalize(self, executor.close)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As the model's.

        Raises:
            WorkerError: A call ended its workers three times.
            Exception: Whatever the model raised in a worker.
        """
        return self._open().call("forward", args, kwargs)

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """As the model's, by one copy of the model."""
        (made,) = self._open().map([("generate", args, kwargs)])
        return made

    def map(self, inputs: Iterable[Any]) -> Iterator[Any]:
        """Outputs for a stream of inputs, in order; see `tauten.map`."""
        total = len(inputs) if isinstance(inputs, Sized) else 0
        calls = (("forward", *arguments(item)) for item in inputs)
        with progress_bars():
            yield from track(self._open().map(calls), "computing", total)

    @property
    def worker_pids(self) -> list[int]:
        """Process ids of the workers; empty where this process computes."""
        pool = getattr(self._executor, "pool", None)
        return [] if pool is None else list(pool.pids)

    def extra_repr(self) -> str:
        return f"{self.plan.model}: {self.plan.layout}"

    def _open(self) -> Executor:
        if not self._close.alive:
            raise InputError("this model's workers were closed; call parallelize again")
        return self._executor


def arguments(item: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments of an item of data: a dict, or (inputs, targets), or one."""
    inputs = inputs_of(item)
    return ((), dict(inputs)) if isinstance(inputs, dict) else ((inputs,), {})
