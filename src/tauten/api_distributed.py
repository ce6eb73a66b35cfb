"""The call for many machines."""

import os
from typing import Any

from tauten.api import ModelLike
from tauten.distributed.module import DistributedModule
from tauten.distributed.start import Access, start, start_laid_out
from tauten.parallel.module import ParallelModule


def distribute(
    model: ModelLike,
    cluster: str | os.PathLike[str] | None = None,
    *,
    workers: int | None = None,
    access: Access | None = None,
    mode: str = "data",
    example_inputs: Any = None,
    goal: str = "throughput",
) -> DistributedModule | ParallelModule:
    """Compute a model on workers of this machine or of many; by default each holds all of it.

    Batches are dealt out by the speed that workers prove to have, in small portions towards the
    end. A worker or machine that is lost is started anew where it can be, and its work is done
    again; results come in order, once each.

    On this machine workers start with the first call, and are given the model as for
    `parallelize`. Models travel to other machines as safetensors and JSON. A module of your own
    can't travel there: pass `package.module:factory`, which workers import.

    Args:
        model: As for `quantize`.
        cluster: None for processes on this machine; a hosts file (a host a line, perhaps `slots=N`
            behind it), whose workers a remote shell starts; `ray://host:port`; or `auto` for the
            Ray cluster that this machine is part of, or for the processes of torchrun.
        workers: On this machine or of Ray, by default one for each core or GPU.
        access: How machines of a hosts file are reached, and by which of this machine's network
            interfaces; by default as the environment says (`TAUTEN_INTERFACE`, ...).
        mode: `data`; or `task` and `auto` as for `parallelize`: the model is cut into parts over
            machines by a plan that is measured there, tensor parallel between neighbours in the
            hosts file. What follows is for these two.
        example_inputs: As for `parallelize`.
        goal: As for `parallelize`.
    Returns:
        A module that is called like the model, for inference. Close it, or use it in `with`. That
        of mode `data` has `map` for streams of inputs, which goes on after a kill if it is given a
        folder, and `evaluate`.
    Raises:
        InputError: There is no such cluster, or the model can't travel.
        WorkerError: No worker is left.
    """
    name: Any = os.fspath(cluster) if isinstance(cluster, os.PathLike) else cluster
    reached = (name, workers, access or Access.from_environment())
    if mode != "data":
        return start_laid_out(model, *reached, (example_inputs, mode, goal))
    return start(model, *reached)
