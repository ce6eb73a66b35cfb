"""Groups of workers on many machines, as `parallel.Pool` has them on one."""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from tauten.core.errors import InputError
from tauten.distributed.crew import Crew
from tauten.distributed.engine import Engine
from tauten.distributed.job import Job
from tauten.distributed.layout_worker import plain_part
from tauten.parallel.group import Assignment

KIND = "tauten.distributed.layout_worker:LayoutWorker"


class RemotePool:
    """Workers that hold parts of a model; neighbours in the hosts file come into one group.

    So tensor parallel stays inside a machine where its slots allow, and stages go across. A worker
    that is lost while a layout is in use ends the call with an error.

    Args:
        engine: Closed with the pool.
        model: As `blueprint` makes it.
    """

    def __init__(self, engine: Engine, model: dict[str, Any]):
        self._engine, self._count = engine, engine.size
        self._crew = Crew(engine, Job(KIND, {"model": model}), self._count)
        self._sizes: list[int] = []

    @property
    def size(self) -> int:
        """Workers that there are."""
        return self._count

    @property
    def pids(self) -> list[int]:
        """Of workers on this machine, or of the shells that started them."""
        return self._engine.pids

    def load(self, groups: Sequence[Sequence[Assignment]]) -> None:
        """As `Pool.load`."""
        self._sizes = [len(group) for group in groups]
        if sum(self._sizes) > self._count:
            raise InputError(f"{sum(self._sizes)} workers for a layout: there are {self._count}")
        places = self._crew.ask([("meet",)] * self._count, keep=False)
        messages: list[Any] = []
        for group in groups:
            first = places[len(messages)]
            messages += [("hold", plain_part(a.part), vars(a.place), first) for a in group]
        messages += [("hold", None, {}, None)] * (self._count - len(messages))
        self._crew.ask(messages, keep=False)

    def run(
        self, calls: Iterable[tuple[str, tuple[Any, ...], dict[str, Any]]], lend: bool = False
    ) -> Iterator[Any]:
        """As `Pool.run`; as many calls at a time as there are groups."""
        source = iter(calls)
        while batch := list(itertools.islice(source, len(self._sizes))):
            yield from self._together(batch)

    def close(self) -> None:
        """As `Pool.close`."""
        self._crew.close()
        self._engine.close()

    def _together(self, calls: Sequence[Any]) -> Iterator[Any]:
        messages: list[Any] = []
        for size, call in itertools.zip_longest(self._sizes, calls):
            messages += [None if call is None else ("call", *call)] * size
        messages += [None] * (self._count - len(messages))
        answers = iter(self._crew.ask(messages, keep=False))
        for size in self._sizes[: len(calls)]:
            own = list(itertools.islice(answers, size))
            yield next(answer["outputs"] for answer in own if answer is not None)
