"""From a model to its workers: check what is asked for, plan, start."""

import atexit
import functools
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from tauten.core.errors import InputError
from tauten.models.source import open_source
from tauten.models.structure import find_structure
from tauten.parallel.cost_model import Link, Links
from tauten.parallel.executors import (
    LocalExecutor,
    PoolExecutor,
    SpmdExecutor,
    device_of,
    join_torchrun,
    under_torchrun,
)
from tauten.parallel.footprint import fits_one_worker, trains_whole, worker_limit_bytes
from tauten.parallel.group import Assignment
from tauten.parallel.launcher import memory_folder
from tauten.parallel.links import measure_links
from tauten.parallel.main_guard import check_guard
from tauten.parallel.module import ParallelModule
from tauten.parallel.parcel import Parcel, pack, switch_cache_off, twin
from tauten.parallel.plan import GOALS, MODES, Layout, Plan
from tauten.parallel.planner import Planner, Task
from tauten.parallel.pool import Pool, pool_folder
from tauten.parallel.rows import count_rows
from tauten.parallel.training import Trainee, check_trainable, distributed
from tauten.parallel.training_module import TrainingModule
from tauten.parallel.worker import Place

_ROWS, _TOKENS = 8, 64  # of the call that a language model is planned for by default
# Between processes that share a machine; used where each waits for the others at every step.
_LOCAL_LINK = Link(3e-4, 2e9)


class Given:
    """A model as the user gave it, and what workers open.

    Attributes:
        name: Of the model.
        model: In memory; or with empty tensors, where it is on disk.
    """

    def __init__(self, model: Any):
        self._source = None if isinstance(model, nn.Module) else open_source(model)
        on_disk = isinstance(model, str | os.PathLike) and self._source is not None
        if self._source is not None and on_disk and self._source.reader is not None:
            self.name, self.model = self._source.name, self._source.skeleton()
        else:
            whole = model if self._source is None else self._source.open()
            if any(tensor.is_meta for tensor in (*whole.parameters(), *whole.buffers())):
                raise InputError(f"{type(whole).__name__} has empty tensors; load it first")
            self.name = type(whole).__name__ if self._source is None else self._source.name
            self._source, self.model = None, whole

    @functools.cached_property
    def folder(self) -> Path:
        """For the files of a pool."""
        return _own_folder() if under_torchrun() else pool_folder()

    @functools.cached_property
    def parcel(self) -> Parcel:
        """What workers open."""
        return pack(self.model, self.folder) if self._source is None else Parcel(self.name)

    def runnable(self, stream: bool) -> nn.Module:
        """The model for calls in this process; streamed from disk it needs a block's memory."""
        if self._source is None:
            model = twin(self.model).eval()
        else:
            blocks = find_structure(self.model).blocks if stream else ()
            model = self._source.open(blocks, stream)
        switch_cache_off(model)
        return model


class PoolBench(PoolExecutor):
    """A pool on which layouts are tried out."""

    def links(self) -> Links:
        """Of two of its workers."""
        return measure_links(self.pool)

    def agree(self, value: Any) -> Any:
        """This process plans alone."""
        return value


class SpmdBench(SpmdExecutor):
    """The processes of torchrun, which plan side by side."""

    def links(self) -> Links:
        """Assumed: a pool isn't at hand to probe."""
        return Links(Link(0.0, 2e9), _LOCAL_LINK, _LOCAL_LINK)

    def agree(self, value: Any) -> Any:
        """What the first process holds."""
        box = [value]
        dist.broadcast_object_list(box, 0)
        return box[0]


def start(
    model: Any, example_inputs: Any, workers: Any, mode: str, goal: str, plan: Any = None
) -> ParallelModule:
    """See `tauten.parallelize`."""
    check_guard()
    _check(mode, goal)
    if under_torchrun():
        join_torchrun()
    given = Given(model)
    count = _worker_count(workers)
    if plan is not None:
        return by_plan(given, plan if isinstance(plan, Plan) else Plan.read(plan))
    if mode == "data" and example_inputs is None:
        return by_plan(given, _data_plan(given, goal, count))
    inputs = example_call(given, example_inputs)
    if count == 1:
        layout, reason = Layout(threads=cores()), "one worker was asked for"
        plan = Plan(given.name, goal, count_rows(inputs), {}, layout, reason=reason)
        return by_plan(given, plan)
    limit, fits = worker_limit_bytes(), fits_one_worker(given.model)
    runnable = given.runnable(stream=not fits)
    threads = max(cores(), torch.get_num_threads())
    task = Task(given.name, runnable, fits, inputs, count, threads, mode, goal, limit)
    bench = _bench(given)
    try:
        found = Planner(task, bench, exact=under_torchrun()).run()
    except BaseException:
        bench.close()
        raise
    config = getattr(given.model, "config", None)
    if found.layout.workers > 1:
        return ParallelModule(bench, found, config)
    bench.close()
    return ParallelModule(LocalExecutor(runnable, found.layout.threads), found, config)


def _bench(given: Given) -> PoolBench | SpmdBench:
    if under_torchrun():
        return SpmdBench(given.parcel)
    return PoolBench(Pool(given.parcel, given.folder))


def start_training(model: Any, workers: Any, goal: str) -> nn.Module:
    """See `tauten.parallelize` with `train=True`."""
    check_guard()
    _check("data", goal)
    if not isinstance(model, nn.Module):
        raise InputError("train=True takes a module: load the model, then pass it")
    check_trainable(model)
    count = _worker_count(workers)
    sharded = goal == "memory" or not trains_whole(model, count)
    if under_torchrun():
        join_torchrun()
        return distributed(model.to(device_of(int(os.environ["LOCAL_RANK"]))), count, sharded)
    given = Given(model)
    layout = Layout(data=count, threads=max(1, cores() // count))
    kind = "FSDP2: each holds a part" if sharded else "DDP: each holds all"
    reason = f"{kind} of weights, gradients and optimizer state"
    plan = Plan(given.name, goal, 0, {}, layout, reason=reason)
    part = Trainee(sharded, torch.initial_seed() % 2**31)
    places = [Place(rank, count, layout.threads, device_of(rank)) for rank in range(count)]
    assignments = [Assignment(part, place) for place in places]
    return TrainingModule(given.parcel, assignments, given.folder, plan)


def by_plan(given: Given, plan: Plan) -> ParallelModule:
    """Lay a model out as a plan says."""
    config = getattr(given.model, "config", None)
    if plan.layout.workers == 1:
        local = LocalExecutor(given.runnable(stream=False), plan.layout.threads)
        return ParallelModule(local, plan, config)
    bench = _bench(given)
    try:
        bench.load(plan.layout, plan.ends, plan.chain)
    except BaseException:
        bench.close()
        raise
    return ParallelModule(bench, plan, config)


def _data_plan(given: Given, goal: str, workers: int) -> Plan:
    threads = max(1, cores() // workers)
    layout = Layout(data=workers, threads=threads)
    reason = "data parallel was asked for, without inputs to measure it on"
    return Plan(given.name, goal, 0, {}, layout, reason=reason)


def example_call(given: Given, example: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments of the call that a plan is made for.

    Args:
        given: The model.
        example: A tensor, a dict of keywords, or a tuple of positional arguments; None for
            tokens, for a language model.
    """
    if example is None:
        vocabulary = getattr(getattr(given.model, "config", None), "vocab_size", None)
        if vocabulary is None:
            raise InputError(
                f"{given.name}: pass example_inputs, a call like those to come (a tensor, a tuple "
                "of arguments or a dict of keywords): plans are measured on it"
            )
        return (), {"input_ids": example_tokens(int(vocabulary), _ROWS, _TOKENS)}
    if isinstance(example, Tensor):
        call: tuple[tuple[Any, ...], dict[str, Any]] = (example,), {}
    elif isinstance(example, dict):
        call = (), dict(example)
    elif isinstance(example, tuple | list):
        call = tuple(example), {}
    else:
        kind = type(example).__name__
        raise InputError(f"example_inputs is a {kind}: expected a tensor, a tuple or a dict")
    if not count_rows(call):
        raise InputError("example_inputs has no rows; pass a batch of the size that is to come")
    return call


def example_tokens(vocabulary: int, rows: int, tokens: int) -> Tensor:
    """Some tokens, (rows, tokens)."""
    return torch.arange(rows * tokens).view(rows, tokens) * 7919 % vocabulary


def _own_folder() -> Path:
    """A folder for a process that starts no workers, removed at its end."""
    folder = memory_folder()
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _check(mode: str, goal: str) -> None:
    if mode not in MODES:
        raise InputError(f"mode={mode!r}: expected one of {', '.join(MODES)}")
    if goal not in GOALS:
        raise InputError(f"goal={goal!r}: expected one of {', '.join(GOALS)}")
    if sys.platform != "linux":
        raise InputError("parallelize runs on Linux; under Windows use WSL")


def _worker_count(workers: Any) -> int:
    most = torch.cuda.device_count() if torch.cuda.is_available() else cores()
    if under_torchrun():
        most = int(os.environ["WORLD_SIZE"])
        if workers not in ("auto", most):
            raise InputError(f"workers={workers}: torchrun started {most}; leave workers out")
    if workers == "auto":
        return most
    if isinstance(workers, bool) or not isinstance(workers, int) or workers < 1:
        raise InputError(f'workers={workers!r}: expected "auto" or a number from 1 on')
    return workers


def cores() -> int:
    """Processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
