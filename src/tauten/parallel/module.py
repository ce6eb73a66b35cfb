"""What `parallelize` returns: a module that is called like the model."""

import itertools
import threading
from collections.abc import Iterable, Iterator, Sized
from dataclasses import replace
from typing import Any, Protocol

from torch import nn

from tauten.core.errors import InputError, TautenError
from tauten.core.progress import progress_bars, track
from tauten.data.calls import as_call
from tauten.data.tensors import inputs_of
from tauten.parallel.closing import InferenceOnWorkers
from tauten.parallel.executors import Executor
from tauten.parallel.given import Given, example_call
from tauten.parallel.plan import Layout, Plan
from tauten.parallel.row_cuts import Call


class Starter(Protocol):
    """Plans a model's layout and starts its workers."""

    @property
    def given(self) -> Given:
        """The model."""
        ...

    @property
    def goal(self) -> str:
        """One of `plan.GOALS`."""
        ...

    def __call__(self, call: Call | None, example: bool) -> tuple[Executor, Plan]:
        """Start.

        Args:
            call: Arguments of the call that the plan is measured on; None where nothing is known.
            example: They were given as an example, not by a first use.
        """
        ...


class ParallelModule(InferenceOnWorkers):
    """A model on workers, called like the model, for inference.

    Nothing is started before it is known what the model is called with: the first call is what
    its plan is measured on, unless `plan(example)` makes one before. Outputs are those of the
    model in evaluation mode, without gradients, and without a cache of keys and values. It is a
    context manager; `close` ends its workers, and so does the end of the process, however it ends.

    Args:
        starter: Called once it is known what the model is called with.
        started: An executor and its plan, where they are there already.
    Attributes:
        config: The model's, if it has one.
    """

    def __init__(self, starter: Starter, started: tuple[Executor, Plan] | None = None):
        super().__init__()
        self.config = starter.given.config
        self._starter, self._executor = starter, None if started is None else started[0]
        self._lock = threading.RLock()
        reason = "not planned yet: the first call is what it is measured on"
        name = starter.given.name
        self._plan = Plan(name, starter.goal, 0, {}, Layout(), reason=reason)
        if started is not None:
            self._take_up(*started)

    @property
    def plan(self) -> Plan:
        """How it is laid out and why, with figures; `plan.save(file)` writes it.

        Called with an example, `parallel.plan(example)`, it is measured anew for calls like that
        (a tensor, a tuple of arguments or a dict of keywords), and workers are started.
        """
        return replace(self._plan, remake=self._replan)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As the model's.

        Raises:
            WorkerError: A call ended its workers three times.
            Exception: Whatever the model raised.
        """
        self._say_of_cache(self._starter.given.config, kwargs)
        with self._calling(args, kwargs):
            return self._started((args, kwargs)).call("forward", args, kwargs)

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """As the model's, by one copy of the model."""
        with self._calling(args, kwargs):
            (made,) = self._started(None).map([("generate", args, kwargs)])
            return made

    def map(self, inputs: Iterable[Any]) -> Iterator[Any]:
        """Outputs for a stream of inputs, in order; see `tauten.map`."""
        total = len(inputs) if isinstance(inputs, Sized) else 0
        model = self._starter.given.model
        calls = (("forward", *self._checked(arguments(item, model))) for item in inputs)
        first = next(calls, None)
        if first is None:
            return
        executor = self._started(first[1:])
        with progress_bars():
            yield from track(executor.map(itertools.chain([first], calls)), "computing", total)

    @property
    def worker_pids(self) -> list[int]:
        """Process ids of the workers; empty where this process computes."""
        pool = getattr(self._executor, "pool", None)
        return [] if pool is None else list(pool.pids)

    def extra_repr(self) -> str:
        where = self._plan.layout if self._executor is not None else self._plan.reason
        return f"{self._plan.model}: {where}"

    def _started(self, call: Call | None) -> Executor:
        self._check_open()
        with self._lock:
            if self._executor is None:
                self._take_up(*self._starter(call, example=False))
            assert self._executor is not None, "it was taken up"
            return self._executor

    def _replan(self, example: Any) -> Plan:
        self._check_open()
        call = example_call(self._starter.given, example)
        with self._calling(*call), self._lock:
            self._take_down()
            try:
                self._take_up(*self._starter(call, example=True))
            except TautenError:
                raise
            except Exception as error:  # whatever the model raises
                raise InputError(
                    f"example_inputs: {self._plan.model} can't be called with them ({error}); pass "
                    "what the model is called with: a tensor, a tuple of arguments or a dict of "
                    "keywords"
                ) from error
            return self.plan

    def _take_up(self, executor: Executor, plan: Plan) -> None:
        self._executor, self._plan = executor, plan
        self._closers.append(executor.close)

    def _take_down(self) -> None:
        if self._executor is not None:
            self._closers.remove(self._executor.close)
            self._executor.close()
            self._executor = None


def arguments(item: Any, model: Any) -> Call:
    """Positional and keyword arguments of an item of data; see `as_call`.

    Args:
        item: A tensor, a dict of keywords, or inputs and targets.
        model: Says what it takes, where it is a module; None where it isn't at hand, and a tuple
            is then inputs and targets.
    """
    if isinstance(model, nn.Module):
        call = as_call(model, item)
        return call.args, call.kwargs
    inputs = inputs_of(item)
    return ((), dict(inputs)) if isinstance(inputs, dict) else ((inputs,), {})
