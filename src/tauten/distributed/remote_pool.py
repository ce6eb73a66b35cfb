"""Groups of workers on many machines, as `parallel.Pool` has them on one."""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from tauten.core.errors import InputError, WorkerError
from tauten.distributed.crew import Crew
from tauten.distributed.engine import Engine
from tauten.distributed.job import Job
from tauten.distributed.layout_worker import plain_part
from tauten.parallel.group import Assignment

_ATTEMPTS = 3  # at a call, before it is given up
_GRACE_S = 5.0  # in which the loss of a worker is heard of, after another has missed it
KIND = "tauten.distributed.layout_worker:LayoutWorker"


class RemotePool:
    """Workers that hold parts of a model; neighbours in the hosts file come into one group.

    So tensor parallel stays inside a machine where its slots allow, and stages go across. Where a
    worker is lost in a call, all load their parts anew, in its place one that was started again,
    and the call is made once more.

    Args:
        engine: Closed with the pool.
        model: As `blueprint` makes it.
    """

    def __init__(self, engine: Engine, model: dict[str, Any]):
        self._engine, self._count = engine, engine.size
        self._job = Job(KIND, {"model": model})
        self._crew = Crew(engine, self._job, self._count)
        self._groups: Sequence[Sequence[Assignment]] = ()

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
        needed = sum(map(len, groups))
        if needed > self._count:
            raise InputError(f"{needed} workers for a layout: there are {self._count}")
        self._groups = groups
        places = self._crew.ask([("meet",)] * self._count, keep=False)
        if self._crew.workers < needed:
            raise WorkerError(
                f"the layout takes {needed} workers, and {self._crew.workers} are left: "
                "distribute the model again"
            )
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
        while batch := list(itertools.islice(source, len(self._groups))):
            yield from self._together(batch)

    def close(self) -> None:
        """As `Pool.close`."""
        self._crew.close()
        self._engine.close()

    def _together(self, calls: Sequence[Any]) -> list[Any]:
        """Outputs of a call for each of the first groups."""
        for _ in range(_ATTEMPTS):
            known = len(self._crew.lost)
            try:
                found = self._asked(calls)
            except (RuntimeError, WorkerError):  # also what the others of a lost worker's group say
                if not self._crew.has_lost(known, _GRACE_S):
                    raise
            else:
                if not self._crew.has_lost(known):
                    return found
            why = self._crew.lost[-1].why
            self._crew.close()
            self._crew = Crew(self._engine, self._job, self._count)
            self.load(self._groups)
        raise WorkerError(f"a call lost workers {_ATTEMPTS} times: {why}")

    def _asked(self, calls: Sequence[Any]) -> list[Any]:
        messages: list[Any] = []
        for group, call in itertools.zip_longest(self._groups, calls):
            messages += [None if call is None else ("call", *call)] * len(group)
        messages += [None] * (self._count - len(messages))
        answers = iter(self._crew.ask(messages, keep=False))
        own = [list(itertools.islice(answers, len(group))) for group in self._groups]
        made = ([a["outputs"] for a in answers if a is not None] for answers in own[: len(calls)])
        return [outputs[0] if outputs else None for outputs in made]  # None: it lost a worker
