"""Measure how fast workers reach each other, on the workers themselves."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.distributed as dist

from tauten.parallel.cost_model import Link, Links
from tauten.parallel.executors import device_of
from tauten.parallel.group import Assignment
from tauten.parallel.parcel import Parcel
from tauten.parallel.pool import Pool
from tauten.parallel.worker import Place

_SMALL, _LARGE = 16, 1 << 19  # numbers of float32
_ROUNDS = 7


@dataclass(frozen=True)
class Probe:
    """Holds no model; it times messages."""

    def load(self, parcel: Parcel, place: Place) -> "Probe":
        """Nothing to load."""
        return self

    def __call__(self, method: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """`echo` returns its argument; `probe` returns seconds, see `_probe`."""
        rank = dist.get_rank()
        made = args[0] if method == "echo" else _probe(rank)
        return made if rank == 0 else NotImplemented


def measure_links(pool: Pool) -> Links:
    """Probe two workers, which are left without a model."""
    places = [Place(rank, 2, 1, device_of(rank)) for rank in range(2)]
    pool.load([[Assignment(Probe(), place) for place in places]])
    (times,) = pool.run([("probe", (), {})])
    seconds = times.tolist()

    def echo(count: int) -> float:
        x = torch.zeros(count)
        return _median_s(lambda: list(pool.run([("echo", (x,), {})], lend=True)))

    small, large = echo(_SMALL), echo(_LARGE)
    return Links(
        parent=_link(small, large, 2),  # there and back
        reduce=_link(seconds[0], seconds[1]),
        send=_link(seconds[2], seconds[3]),
    )


def _probe(rank: int) -> torch.Tensor:
    """Seconds of a small and a large all_reduce, and of a small and a large message: (4,)."""
    times = []
    for count in (_SMALL, _LARGE):
        x = torch.zeros(count)
        times.append(_median_s(partial(dist.all_reduce, x)))
    for count in (_SMALL, _LARGE):
        x = torch.zeros(count)

        def there_and_back(x: torch.Tensor = x) -> None:
            for source in (0, 1):
                dist.send(x, 1 - source) if rank == source else dist.recv(x, source)

        times.append(_median_s(there_and_back) / 2)
    return torch.tensor(times, dtype=torch.float64)


def _link(small_s: float, large_s: float, ways: int = 1) -> Link:
    moved = 4 * (_LARGE - _SMALL) * ways
    return Link(small_s, moved / max(large_s - small_s, 1e-9))


def _median_s(call: Callable[[], Any]) -> float:
    times = []
    for _ in range(_ROUNDS):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])
