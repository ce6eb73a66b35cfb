"""From a model and the name of a cluster to workers that hold it."""

import contextlib
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tauten.core.errors import InputError
from tauten.distributed.blueprint import blueprint
from tauten.distributed.cluster import Cluster
from tauten.distributed.engine import Engine
from tauten.distributed.host_engine import SHELL, HostEngine
from tauten.distributed.hosts import LOOPBACK, read_hosts
from tauten.distributed.local_engine import LocalEngine
from tauten.distributed.module import DistributedModule
from tauten.distributed.ray_engine import RayEngine
from tauten.distributed.remote_pool import RemotePool
from tauten.distributed.token import ENVIRONMENT, read_token
from tauten.models.source import open_source
from tauten.parallel.executors import LocalExecutor, under_torchrun
from tauten.parallel.footprint import fits_one_worker, worker_limit_bytes
from tauten.parallel.module import ParallelModule
from tauten.parallel.planner import Planner, Task
from tauten.parallel.start import Given, PoolBench, cores, example_call
from tauten.parallel.start import start as start_parallel


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
    reference, name, config, release = for_workers(model, cluster, access)
    try:
        engine = open_engine(cluster, workers, access)
    except BaseException:
        release()
        raise

    def fingerprint() -> str:
        return open_source(model).fingerprint

    return DistributedModule(Cluster(engine), reference, name, fingerprint, config, release)


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
    reference, given = blueprint(model, access.shared_folders), Given(model)
    inputs, fits = example_call(given, example), fits_one_worker(given.model)
    runnable, limit = given.runnable(stream=not fits), worker_limit_bytes()
    pool: Any = RemotePool(open_engine(cluster, workers, access), reference)
    try:
        threads = torch.get_num_threads()
        task = Task(given.name, runnable, fits, inputs, pool.size, threads, mode, goal, limit)
        found = Planner(task, PoolBench(pool)).run()
    except BaseException:
        pool.close()
        raise
    finally:
        shutil.rmtree(given.folder, ignore_errors=True)
    config = getattr(given.model, "config", None)
    if found.layout.workers > 1:
        bench = PoolBench(pool)
        bench.load(found.layout, found.ends, found.chain)
        return ParallelModule(bench, found, config)
    pool.close()
    return ParallelModule(LocalExecutor(runnable, found.layout.threads), found, config)


def open_engine(cluster: str | None, workers: int | None, access: Access) -> Engine:
    """Start workers.

    Args:
        cluster: None for this machine, `ray://host:port` or `auto` for Ray, or a hosts file.
        workers: On this machine or of Ray; by default one for each core or GPU.
        access: To the machines of a hosts file.
    Raises:
        InputError: There is no such cluster.
    """
    if workers is not None and (isinstance(workers, bool) or workers < 1):
        raise InputError(f"workers={workers!r}: expected a number from 1 on")
    if cluster is None:
        count = workers or _count()
        return LocalEngine(count, max(1, cores() // count))
    if cluster == "auto" or cluster.startswith("ray://"):
        return RayEngine(cluster, workers)
    if not Path(cluster).is_file():
        raise InputError(
            f"cluster={cluster!r}: no such file; pass a hosts file, ray://host:port, or auto"
        )
    if workers is not None:
        raise InputError("workers beside a hosts file: write slots=N into the file instead")
    hosts = read_hosts(cluster)
    token = read_token(access.token)
    return HostEngine(hosts, token, access.interface, access.shell, access.python)


def for_workers(
    model: Any, cluster: str | None, access: Access
) -> tuple[Any, str, Any, Callable[[], None]]:
    """A model for a cluster's workers; its name, configuration, and what removes its files."""
    if cluster is None:
        given = Given(model)

        def release() -> None:
            shutil.rmtree(given.folder, ignore_errors=True)

        return given.parcel, given.name, getattr(given.model, "config", None), release
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
    reference, _, _, release = for_workers(model, name, access)
    with contextlib.ExitStack() as stack:
        stack.callback(release)
        engine = open_engine(name, count, access)
        stack.callback(engine.close)
        yield reference, engine


def _count() -> int:
    return torch.cuda.device_count() if torch.cuda.is_available() else cores()
