"""From a model and the name of a cluster to workers that hold it."""

import contextlib
import functools
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tauten.core.errors import InputError
from tauten.core.printing import logger
from tauten.core.trees import copied
from tauten.distributed.blueprint import blueprint
from tauten.distributed.cluster import Cluster
from tauten.distributed.engine import Engine
from tauten.distributed.host_engine import SHELL, HostEngine
from tauten.distributed.hosts import LOOPBACK, read_hosts
from tauten.distributed.local_engine import LocalEngine
from tauten.distributed.module import DistributedModule, Workers
from tauten.distributed.own_engine import OwnEngine
from tauten.distributed.ray_engine import RayEngine
from tauten.distributed.remote_pool import RemotePool
from tauten.distributed.token import ENVIRONMENT, read_token
from tauten.models.source import open_source
from tauten.parallel.benches import PoolBench
from tauten.parallel.by_value import UnsendableError
from tauten.parallel.comparison import tolerance
from tauten.parallel.executors import Executor, LocalExecutor, under_torchrun
from tauten.parallel.footprint import fits_one_worker, worker_limit_bytes
from tauten.parallel.given import Given, example_call
from tauten.parallel.module import ParallelModule
from tauten.parallel.plan import Plan
from tauten.parallel.planner import Planner, Task
from tauten.parallel.row_cuts import Call, RowCuts
from tauten.parallel.start import cores
from tauten.parallel.start import start as start_parallel

_log = logger(__name__)


@dataclass(frozen=True)
class Access:
    """How the machines of a hosts file are reached.

    Attributes:
        interface: Name or address of this machine's network interface that they reach it by.
        token: File of the cluster's token; see `tauten.distributed.token.read_token`.
        shell: What runs a command on `{host}`.
        python: Interpreter there.
        shared_folders: They see the same folders, so that models needn't be sent.
    """

    interface: str = LOOPBACK
    token: str | None = None
    shell: str = SHELL
    python: str = sys.executable
    shared_folders: bool = False

    @classmethod
    def from_environment(cls) -> "Access":
        """As `TAUTEN_INTERFACE`, `TAUTEN_TOKEN_PATH`, `TAUTEN_SHELL`, `TAUTEN_PYTHON` say."""
        names = {"interface": "TAUTEN_INTERFACE", "token": ENVIRONMENT}
        names |= {"shell": "TAUTEN_SHELL", "python": "TAUTEN_PYTHON"}
        found = {field: os.environ[name] for field, name in names.items() if name in os.environ}
        return cls(**found)  # type: ignore[arg-type]


def start(
    model: Any, cluster: str | None, workers: int | None, access: Access
) -> DistributedModule | ParallelModule:
    """See `tauten.distribute`."""
    if cluster == "auto" and under_torchrun():
        return start_parallel(model, None, "auto", "data", "throughput")

    def fingerprint() -> str:
        return open_source(model).fingerprint

    check_cluster(cluster, workers)
    if cluster is None:
        given = Given(model)
        starter = functools.partial(_start_here, given, workers)
        return DistributedModule(starter, given.name, fingerprint, given.config, model=given.model)
    reference, name, config, _ = for_workers(model, cluster, access)
    cuts = RowCuts(name, tolerance(model))
    remote = Workers(Cluster(open_engine(cluster, workers, access)), reference, cuts)
    closers = [remote.close]
    return DistributedModule(lambda: remote, name, fingerprint, config, closers, model)


def _start_here(given: Given, workers: int | None) -> Workers:
    """Workers on this machine; this process alone where none can be started or given the model."""
    if sys.platform != "linux":
        why = f"workers are started on Linux only, and this is {sys.platform}"
    else:
        try:
            reference, folder = given.packed()
        except UnsendableError as error:
            why = str(error)
        else:
            cluster = Cluster(open_engine(None, workers, Access()))
            release = functools.partial(shutil.rmtree, folder, True)
            return Workers(cluster, reference, given.row_cuts(), release)
    _log.warning("%s; it runs in this process", why)
    return Workers(Cluster(OwnEngine()), given.runnable(stream=False), given.row_cuts())


def start_laid_out(
    model: Any,
    cluster: str | None,
    workers: int | None,
    access: Access,
    wanted: tuple[Any, str, str],
) -> ParallelModule:
    """Lay a model out over machines by a measured plan.

    Args:
        model, cluster, workers, access: As for `start`.
        wanted: Example inputs, mode and goal, as for `tauten.parallelize`.
    """
    example, mode, goal = wanted
    if cluster is None or (cluster == "auto" and under_torchrun()):
        return start_parallel(model, example, workers or "auto", mode, goal)
    check_cluster(cluster, workers)
    reference, given = blueprint(model, access.shared_folders), Given(model)
    engine = functools.partial(open_engine, cluster, workers, access)
    parallel = ParallelModule(RemoteStarter(given, reference, engine, mode, goal))
    if example is not None:
        parallel.plan(example)
    return parallel


@dataclass(frozen=True)
class RemoteStarter:
    """Lays a model out over machines; see `parallel.module.Starter`.

    Attributes:
        given: The model.
        reference: The model as workers open it.
        engine: Starts the workers.
        mode, goal: As for `tauten.parallelize`.
    """

    given: Given
    reference: Any
    engine: Callable[[], Engine]
    mode: str
    goal: str

    def __call__(self, call: Call | None, example: bool) -> tuple[Executor, Plan]:
        """Plan for a call, and lay the model out."""
        given, goal = self.given, self.goal
        call = copied(example_call(given, None) if call is None else call)
        fits, limit = fits_one_worker(given.model), worker_limit_bytes()
        runnable, threads = given.runnable(stream=not fits), torch.get_num_threads()
        pool: Any = RemotePool(self.engine(), self.reference)
        try:
            task = Task(
                given.name, runnable, fits, call, pool.size, threads, self.mode, goal, limit
            )
            bench = PoolBench(pool, given.row_cuts())
            found = Planner(task, bench).run()
            if found.layout.workers > 1:
                bench.load(found.layout, found.ends, found.chain)
                return bench, found
        except BaseException:
            pool.close()
            raise
        pool.close()
        return LocalExecutor(runnable, found.layout.threads), found


def open_engine(cluster: str | None, workers: int | None, access: Access) -> Engine:
    """Start workers.

    Args:
        cluster: None for this machine, `ray://host:port` or `auto` for Ray, or a hosts file.
        workers: On this machine or of Ray; by default one for each core or GPU.
        access: To the machines of a hosts file.
    Raises:
        InputError: There is no such cluster.
    """
    check_cluster(cluster, workers)
    if cluster is None:
        count = workers or _count()
        return LocalEngine(count, max(1, cores() // count))
    if cluster == "auto" or cluster.startswith("ray://"):
        return RayEngine(cluster, workers)
    hosts = read_hosts(cluster)
    token = read_token(access.token)
    return HostEngine(hosts, token, access.interface, access.shell, access.python)


def check_cluster(cluster: Any, workers: Any) -> None:
    """Refuse what names no cluster, and what is no number of workers."""
    if workers is not None and (
        isinstance(workers, bool) or not isinstance(workers, int) or workers < 1
    ):
        raise InputError(f"workers={workers!r}: expected a number from 1 on")
    if cluster is None or cluster == "auto" or str(cluster).startswith("ray://"):
        return
    if not isinstance(cluster, str) or not Path(cluster).is_file():
        raise InputError(
            f"cluster={cluster!r}: no such file; pass a hosts file, ray://host:port, or auto"
        )
    if workers is not None:
        raise InputError("workers beside a hosts file: write slots=N into the file instead")


def for_workers(
    model: Any, cluster: str | None, access: Access
) -> tuple[Any, str, Any, Callable[[], None]]:
    """A model for a cluster's workers; its name, configuration, and what removes its files."""
    if cluster is None:
        given = Given(model)
        parcel, folder = given.packed()
        release = functools.partial(shutil.rmtree, folder, True)
        return parcel, given.name, given.config, release
    name = str(model) if isinstance(model, str | os.PathLike) else type(model).__name__
    config = getattr(model, "config", None)
    return blueprint(model, access.shared_folders), name, config, lambda: None


@contextlib.contextmanager
def engine_for(model: Any, workers: int | str) -> Iterator[tuple[Any, Engine]]:
    """An engine for work on a model, and the model as its workers open it; both end with it.

    Args:
        model: As for `blueprint`.
        workers: On this machine, or the name of a cluster as for `tauten.distribute`.
    """
    count, name = (workers, None) if isinstance(workers, int) else (None, workers)
    access = Access.from_environment()
    check_cluster(name, count)
    reference, _, _, release = for_workers(model, name, access)
    with contextlib.ExitStack() as stack:
        stack.callback(release)
        engine = open_engine(name, count, access)
        stack.callback(engine.close)
        yield reference, engine


def _count() -> int:
    return torch.cuda.device_count() if torch.cuda.is_available() else cores()
