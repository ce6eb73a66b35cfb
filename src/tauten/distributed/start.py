"""From a model and the name of a cluster to workers that hold it."""

import os
import shutil
from typing import Any

import torch

from tauten.core.errors import InputError
from tauten.distributed.cluster import Cluster
from tauten.distributed.local_engine import LocalEngine
from tauten.distributed.module import DistributedModule
from tauten.parallel.start import Given


def start(model: Any, cluster: Any, workers: int | None) -> Any:
    """See `tauten.distribute`."""
    if cluster is None:
        return _local(model, workers)
    raise InputError(f"cluster={cluster!r}")


def local_cluster(workers: int | None) -> Cluster:
    """Workers on this machine, by default one for each GPU or core."""
    count = _count(workers)
    return Cluster(LocalEngine(count, max(1, _cores() // count)))


def _local(model: Any, workers: int | None) -> DistributedModule:
    given = Given(model)
    cluster = local_cluster(workers)
    config = getattr(given.model, "config", None)

    def release() -> None:
        shutil.rmtree(given.folder, ignore_errors=True)

    return DistributedModule(cluster, given.parcel, given.name, config, release)


def _count(workers: int | None) -> int:
    if workers is None:
        return torch.cuda.device_count() if torch.cuda.is_available() else _cores()
    if isinstance(workers, bool) or not isinstance(workers, int) or workers < 1:
        raise InputError(f"workers={workers!r}: expected a number from 1 on")
    return workers


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
