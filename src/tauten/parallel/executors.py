"""Who computes a call: this process alone, a pool of workers, or the processes of torchrun."""

import functools
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from tauten.core.errors import InputError
from tauten.core.trees import map_leaves, map_tensors, tensors_of
from tauten.parallel.closing import without_autocast
from tauten.parallel.data_parallel import TRIAL, Replica
from tauten.parallel.group import Assignment
from tauten.parallel.parcel import Parcel
from tauten.parallel.pipeline_parallel import ChainShape
from tauten.parallel.plan import Layout
from tauten.parallel.pool import Pool
from tauten.parallel.profile import with_threads
from tauten.parallel.row_cuts import RowCuts, call_in_parts
from tauten.parallel.rows import place_of, to_device
from tauten.parallel.share import Share
from tauten.parallel.worker import Part, Place, Runner

Calls = Iterable[tuple[str, tuple[Any, ...], dict[str, Any]]]


class Executor(Protocol):
    """Computes calls of a model."""

    def call(self, method: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """One call, by all workers together."""
        ...

    def map(self, calls: Calls) -> Iterator[Any]:
        """Many calls, each by some workers; results in order."""
        ...

    def close(self) -> None:
        """End what it started."""
        ...


class LocalExecutor:
    """This process, with the model as it is.

    Args:
        model: To call.
        threads: That it computes with.
    """

    def __init__(self, model: nn.Module, threads: int):
        self._model, self._threads = model, threads

    def call(self, method: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call the model."""
        function = self._model if method == "forward" else getattr(self._model, method)
        with with_threads(self._threads), without_autocast(), torch.no_grad():
            return function(*args, **kwargs)

    def map(self, calls: Calls) -> Iterator[Any]:
        """One after the other."""
        for call in calls:
            yield self.call(*call)

    def close(self) -> None:
        """Nothing was started."""


class PoolExecutor:
    """Workers of this process.

    Args:
        pool: Closed with the executor.
        cuts: What is known of cutting calls of the model.
    """

    def __init__(self, pool: Pool, cuts: RowCuts):
        self.pool, self.cuts = pool, cuts
        self._layout = Layout()

    def load(self, layout: Layout, ends: tuple[int, ...], chain: ChainShape | None) -> None:
        """Have workers take up a layout."""
        size = layout.tensor * layout.pipeline
        part = part_of(layout, ends, chain)
        places = [
            [Place(r, size, layout.threads, device_of(copy * size + r)) for r in range(size)]
            for copy in range(layout.data)
        ]
        self.pool.load([[Assignment(part, place) for place in group] for group in places])
        self._layout = layout

    def call(self, method: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Cut the batch among the copies of the model; outputs lie where the inputs did."""

        def compute(calls: Any, lend: bool, method: str = method) -> list[Any]:
            return list(self.pool.run(((method, *call) for call in calls), lend))

        call, is_whole = (args, kwargs), self._layout.microbatches == 1
        trial = functools.partial(compute, method=TRIAL)
        made = call_in_parts(self.cuts, compute, call, self._layout.data, is_whole, trial)
        return to_device(made, place_of(call))

    def map(self, calls: Calls) -> Iterator[Any]:
        """Each call by one copy of the model."""
        return self.pool.run(calls)

    def close(self) -> None:
        """End the workers."""
        self.pool.close()


class SpmdExecutor:
    """The processes of torchrun, which all make the same calls with the same inputs.

    Args:
        parcel: The model, which each process has.
        cuts: What is known of cutting calls of it.
    """

    def __init__(self, parcel: Parcel, cuts: RowCuts):
        self._parcel, self.cuts = parcel, cuts
        self._runner: Runner | None = None
        self._layout = Layout()
        device = device_of(int(os.environ.get("LOCAL_RANK", 0)))
        self._place = Place(dist.get_rank(), dist.get_world_size(), torch.get_num_threads(), device)

    def load(self, layout: Layout, ends: tuple[int, ...], chain: ChainShape | None) -> None:
        """Take up a layout of as many workers as there are processes."""
        if layout.workers != self._place.world:
            raise InputError(f"{layout}: torchrun started {self._place.world} processes")
        self._runner = part_of(layout, ends, chain).load(self._parcel, self._place)
        self._layout = layout

    def call(self, method: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Compute this process' rows, and hand outputs around."""

        def compute(calls: Any, lend: bool, method: str = method) -> list[Any]:
            return self._side_by_side(method, calls)

        call, is_whole = (args, kwargs), self._layout.microbatches == 1
        trial = functools.partial(compute, method=TRIAL)
        return call_in_parts(self.cuts, compute, call, self._layout.data, is_whole, trial)

    def _side_by_side(self, method: str, calls: Sequence[Any]) -> list[Any]:
        """Outputs of a call for each copy of the model; all processes come to know them all."""
        assert self._runner is not None, "it was loaded"
        size, found = self._layout.tensor * self._layout.pipeline, []
        copy, answering = self._place.rank // size, size - self._layout.tensor
        for first in range(0, len(calls), self._layout.data):
            turn = calls[first : first + self._layout.data]
            # Where there are too few for all copies, the others compute the first, to no end.
            made = self._runner(method, *turn[copy if copy < len(turn) else 0])
            found += [_broadcast(made, number * size + answering) for number in range(len(turn))]
        return found

    def map(self, calls: Calls) -> Iterator[Any]:
        """One after the other: all processes must make them alike."""
        for call in calls:
            yield self.call(*call)

    def close(self) -> None:
        """Drop the model; torchrun ends the processes."""
        self._runner = None


def part_of(layout: Layout, ends: tuple[int, ...], chain: ChainShape | None) -> Part:
    """What a worker of a layout holds."""
    if layout.tensor * layout.pipeline == 1:
        return Replica()
    shape = chain if layout.pipeline > 1 else None
    return Share(layout.tensor, ends, shape, layout.microbatches)


def device_of(number: int) -> str:
    """The GPU of a worker, or the CPU where there is none."""
    if not torch.cuda.is_available():
        return "cpu"
    if number >= torch.cuda.device_count():
        raise InputError(
            f"worker {number}: there are {torch.cuda.device_count()} GPUs; pass workers="
            f"{torch.cuda.device_count()} or hide them (CUDA_VISIBLE_DEVICES=) to use the CPU"
        )
    return f"cuda:{number}"


def under_torchrun() -> bool:
    """Whether this process is one of several that torchrun started."""
    return "RANK" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1


def join_torchrun() -> None:
    """Meet the other processes, unless the program has done so."""
    if not dist.is_initialized():
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")


def _broadcast(made: Any, source: int) -> Any:
    """Outputs of one process, in all of them."""
    is_source = dist.get_rank() == source
    form = [map_tensors(_empty_like, made)] if is_source else [None]
    dist.broadcast_object_list(form, source)
    tree: Any = made if is_source else map_leaves(_filled, form[0])
    for tensor in tensors_of(tree):
        dist.broadcast(tensor.contiguous() if is_source else tensor, source)
    return tree


def _empty_like(tensor: Tensor) -> Tensor:
    return torch.empty_like(tensor, device="meta")


def _filled(leaf: Any) -> Any:
    if not isinstance(leaf, Tensor):
        return leaf
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.empty(leaf.shape, dtype=leaf.dtype, device=device)
