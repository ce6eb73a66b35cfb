"""From a model to its workers: check what is asked for, plan, start."""

import os
import sys
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from tauten.core.errors import InputError
from tauten.core.figures import format_seconds
from tauten.core.printing import logger
from tauten.core.progress import progress_bars
from tauten.core.rows import count_rows
from tauten.core.trees import copied
from tauten.models.state import state_kept
from tauten.parallel.benches import LOCAL_LINK, PoolBench, SpmdBench
from tauten.parallel.by_value import UnsendableError
from tauten.parallel.executors import (
    Executor,
    LocalExecutor,
    device_of,
    join_torchrun,
    under_torchrun,
)
from tauten.parallel.footprint import fits_one_worker, trains_whole, worker_limit_bytes
from tauten.parallel.given import Given, example_call, takes_tokens
from tauten.parallel.group import Assignment
from tauten.parallel.module import ParallelModule
from tauten.parallel.plan import GOALS, MODES, Layout, Plan
from tauten.parallel.planner import Planner, Task
from tauten.parallel.pool import Pool
from tauten.parallel.profile import with_threads
from tauten.parallel.row_cuts import Call
from tauten.parallel.rows import describe_call
from tauten.parallel.training import Trainee, check_trainable, distributed
from tauten.parallel.training_module import TrainingModule
from tauten.parallel.worker import Place

_log = logger(__name__)
# A call that is shorter loses by any split: half of it is less than handing it over and back takes.
_WORTH_SPLITTING_S = 2 * LOCAL_LINK.latency_s
_LOOKS, _LOOKING_S = 5, 0.5  # at a call's time; the first may be many times as long


@dataclass(frozen=True)
class LocalStarter:
    """Lays a model out over processes of this machine; see `module.Starter`.

    Attributes:
        given: The model.
        workers: Most processes.
        mode, goal: As for `tauten.parallelize`.
    """

    given: Given
    workers: int
    mode: str
    goal: str

    def __call__(self, call: Call | None, example: bool) -> tuple[Executor, Plan]:
        """Plan for a call and start; in this process alone where no worker can be given it."""
        if sys.platform != "linux":
            return self._alone(f"workers are started on Linux only, and this is {sys.platform}")
        if self.workers == 1:
            return self._alone("one worker was asked for", call, expected=True)
        try:
            return self._start(call, example)
        except UnsendableError as error:
            return self._alone(str(error))

    def _start(self, call: Call | None, example: bool) -> tuple[Executor, Plan]:
        if self.mode == "data" and not example:
            layout = Layout(data=self.workers, threads=max(1, cores() // self.workers))
            reason = "data parallel was asked for, without inputs to measure it on"
            plan = Plan(self.given.name, self.goal, 0, {}, layout, reason=reason)
            return by_plan(self.given, plan)
        if call is None:
            if not takes_tokens(self.given.config):
                why = "it was to generate before any call, and plans are measured on calls"
                return self._alone(f"{why}: parallel.plan(example) makes one", expected=True)
            call = example_call(self.given, None)
        try:
            count_rows(call)
        except InputError as error:
            return self._alone(str(error), expected=True)
        call = copied(call)  # planning calls the model many times, and it may work in its inputs
        fits = fits_one_worker(self.given.model)
        runnable = self.given.runnable(stream=not fits)
        with progress_bars(), state_kept(runnable):
            return self._planned(runnable, fits, call, example)

    def _planned(
        self, runnable: Any, fits: bool, call: Call, example: bool
    ) -> tuple[Executor, Plan]:
        given, limit = self.given, worker_limit_bytes()
        threads = max(cores(), torch.get_num_threads())
        if fits and not example and not under_torchrun() and self.goal != "memory":
            spent_s = _call_s(runnable, call)
            if spent_s < _WORTH_SPLITTING_S:
                why = f"a call takes {format_seconds(spent_s)}, less than handing it to workers"
                return self._alone(why, call, expected=True)
        wanted = (self.workers, threads, self.mode, self.goal, limit)
        bench = _bench(given)
        try:
            task = Task(given.name, runnable, fits, call, *wanted)
            plan = Planner(task, bench, exact=under_torchrun()).run()
        except BaseException:
            bench.close()
            raise
        if plan.layout.workers > 1:
            return bench, plan
        bench.close()
        return LocalExecutor(runnable, plan.layout.threads), plan

    def _alone(
        self, reason: str, call: Call | None = None, expected: bool = False
    ) -> tuple[Executor, Plan]:
        """This process with all its threads."""
        if not expected:
            _log.warning("%s; it runs in this process", reason)
        rows, inputs = (0, {}) if call is None else (count_rows(call), describe_call(call))
        plan = Plan(
            self.given.name, self.goal, rows, inputs, Layout(threads=cores()), reason=reason
        )
        return LocalExecutor(self.given.runnable(stream=False), plan.layout.threads), plan


def start(
    model: Any, example_inputs: Any, workers: Any, mode: str, goal: str, plan: Any = None
) -> ParallelModule:
    """See `tauten.parallelize`."""
    _check(mode, goal)
    if under_torchrun():
        join_torchrun()
    given = Given(model)
    starter = LocalStarter(given, _worker_count(workers), mode, goal)
    if plan is not None:
        return ParallelModule(
            starter, by_plan(given, plan if isinstance(plan, Plan) else Plan.read(plan))
        )
    parallel = ParallelModule(starter)
    if example_inputs is not None:
        parallel.plan(example_inputs)
    return parallel


def start_training(model: Any, workers: Any, goal: str) -> nn.Module:
    """See `tauten.parallelize` with `train=True`."""
    _check("data", goal)
    if sys.platform != "linux":
        raise InputError("train=True runs on Linux; under Windows use WSL")
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
    return TrainingModule(*given.packed(), assignments, plan)


def by_plan(given: Given, plan: Plan) -> tuple[Executor, Plan]:
    """Lay a model out as a plan says."""
    if plan.layout.workers == 1:
        return LocalExecutor(given.runnable(stream=False), plan.layout.threads), plan
    bench = _bench(given)
    try:
        bench.load(plan.layout, plan.ends, plan.chain)
    except BaseException:
        bench.close()
        raise
    return bench, plan


def _bench(given: Given) -> PoolBench | SpmdBench:
    (parcel, folder), cuts = given.packed(), given.row_cuts()
    return SpmdBench(parcel, cuts) if under_torchrun() else PoolBench(Pool(parcel, folder), cuts)


def _call_s(model: Any, call: Call) -> float:
    """Seconds of a call on one thread of this process; a short one is timed a few times."""
    times: list[float] = []
    with torch.inference_mode(), with_threads(1):
        while len(times) < _LOOKS and sum(times) < _LOOKING_S:
            start_s = time.perf_counter()
            model(*call[0], **call[1])
            times.append(time.perf_counter() - start_s)
    return min(times)


def _check(mode: str, goal: str) -> None:
    if mode not in MODES:
        raise InputError(f"mode={mode!r}: expected one of {', '.join(MODES)}")
    if goal not in GOALS:
        raise InputError(f"goal={goal!r}: expected one of {', '.join(GOALS)}")


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
