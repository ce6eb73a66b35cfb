"""Who computes a call: this process alone, a pool of workers, or the processes of torchrun."""

import os
from collections.abc import Iterable, Iterator
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from tauten.core.errors import InputError
from tauten.parallel.data_parallel import Replica
from tauten.parallel.group import Assignment
from tauten.parallel.parcel import Parcel
from tauten.parallel.pipeline_parallel import ChainShape
from tauten.parallel.plan import Layout
from tauten.parallel.pool import Pool
from tauten.parallel.profile import with_threads
from tauten.parallel.rows import count_rows, cut_rows, even_sizes, join_rows, to_device
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
        with with_threads(self._threads), torch.no_grad():
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
        parcel: The model.
        pool: Closed with the executor.
    """

    def __init__(self, pool: Pool):
        self.pool = pool
        self._copies = 1

    def load(self, layout: Layout, ends: tuple[int, ...], chain: ChainShape | None) -> None:
        """Have workers take up a layout."""
        size = layout.tensor * layout.pipeline
        part = part_of(layout, ends, chain)
        places = [
            [Place(r, size, layout.threads, device_of(copy * size + r)) for r in range(size)]
            for copy in range(layout.data)
        ]
        self.pool.load([[Assignment(part, place) for place in group] for group in places])
        self._copies = layout.data

    def call(self, method: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Cut the batch among the copies of the model; outputs lie where the inputs did."""
        device = _device((args, kwargs))
        rows = count_rows((args, kwargs))
        sizes = [size for size in even_sizes(rows, self._copies) if size] or [0]
        parts = cut_rows((args, kwargs), sizes)
        made = list(self.pool.run(((method, *part) for part in parts), lend=True))
        return to_device(join_rows(made, sizes), device)

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
    """

    def __init__(self, parcel: Parcel):
        self._parcel = parcel
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
        assert self._runner is not None, "it was loaded"
        size = self._layout.tensor * self._layout.pipeline
        sizes = even_sizes(count_rows((args, kwargs)), self._layout.data)
        copy = self._place.rank // size
        # Where rows are too few for all, the others compute the first copy's, to no end.
        parts = cut_rows((args, kwargs), sizes)
        mine = parts[copy] if sizes[copy] else parts[0]
        made = self._runner(method, *mine)
        answering = size - self._layout.tensor
        joined = [
            _broadcast(made, number * size + answering)
            for number, rows in enumerate(sizes)
            if rows or not number
        ]
        return join_rows(joined, [rows for rows in sizes if rows] or [0])

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
    form = [tree_map(_empty_like, made)] if is_source else [None]
    dist.broadcast_object_list(form, source)
    tree: Any = made if is_source else tree_map(_filled, form[0])
    for leaf in tree_leaves(tree):
        if isinstance(leaf, Tensor):
            dist.broadcast(leaf.contiguous() if is_source else leaf, source)
    return tree


def _empty_like(leaf: Any) -> Any:
    return torch.empty_like(leaf, device="meta") if isinstance(leaf, Tensor) else leaf


def _filled(leaf: Any) -> Any:
    if not isinstance(leaf, Tensor):
        return leaf
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.empty(leaf.shape, dtype=leaf.dtype, device=device)


def _device(inputs: Any) -> torch.device:
    tensors = (leaf for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor))
    return next((tensor.device for tensor in tensors), torch.device("cpu"))
