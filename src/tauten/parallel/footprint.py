"""Memory that workers need, and how much each may have."""

import math
import resource
from pathlib import Path

import torch
from torch import nn

from tauten.models.loader import tensor_slots
from tauten.parallel.cost_model import fullest
from tauten.parallel.launcher import the_launcher
from tauten.parallel.pipeline_parallel import ChainShape, Stage
from tauten.parallel.plan import Layout
from tauten.parallel.tensor_parallel import TensorPlan

_TRAINING_COPIES = 4
SLACK = 1.1  # of the weights: what a layer needs besides while it is loaded


def weight_bytes(
    model: nn.Module,
    layout: Layout,
    ends: tuple[int, ...],
    chain: ChainShape | None,
    plan: TensorPlan,
) -> int:
    """Exact bytes of the weights that the fullest worker holds, but for the rounding of shares.

    Args:
        model: Its tensors may be on the meta device.
        layout: Of workers.
        ends: Where the stages end, of a pipeline.
        chain: Of its blocks, of a pipeline.
        plan: Which layers are dealt out.
    """
    cut = {cut.layer for cut in plan.cuts} if layout.tensor > 1 else set()
    share = fullest(plan.most_workers, layout.tensor)
    slots = tensor_slots(model)
    most = 0.0
    for begin, end in zip((0, *ends), ends or (0,), strict=False):
        unused = Stage.unused(chain, begin, end) if chain is not None and ends else ()
        prefixes = tuple(f"{name}." for name in unused)
        size = 0.0
        for slot in slots:
            used = [name for name in slot.names if not name.startswith(prefixes)]
            layers = {layer for name in used for layer in _parents(name)}
            dealt = bool(used) and len(slot.names) == 1 and bool(layers & cut)
            size += slot.empty.nbytes * (share if dealt else 1) if used else 0
        most = max(most, size)
    return int(most)


def worker_limit_bytes() -> int | None:
    """Weights that a worker may hold: by its GPU, or by this process' resource limits.

    None where the only limit is the machine's memory.
    """
    if torch.cuda.is_available():
        return int(torch.cuda.get_device_properties(0).total_memory / SLACK)
    rooms = []
    for kind, field in ((resource.RLIMIT_DATA, "VmData"), (resource.RLIMIT_AS, "VmSize")):
        limit, _ = resource.getrlimit(kind)
        if limit != resource.RLIM_INFINITY:
            rooms.append(limit - _status_bytes(the_launcher().pid, field))
    return int(min(rooms) / SLACK) if rooms else None


def fits_one_worker(model: nn.Module) -> bool:
    """Whether a worker may hold all weights of a model, whose tensors may be empty."""
    limit = worker_limit_bytes()
    return limit is None or sum(slot.empty.nbytes for slot in tensor_slots(model)) <= limit


def trains_whole(model: nn.Module, workers: int) -> bool:
    """Whether each worker may hold a model's weights, gradients and two moments of an optimizer."""
    needed = _TRAINING_COPIES * sum(slot.empty.nbytes for slot in tensor_slots(model))
    limit = worker_limit_bytes()
    memory = Path("/proc/meminfo")
    machine = math.inf
    if not torch.cuda.is_available() and memory.exists():
        line = next(x for x in memory.read_text().splitlines() if x.startswith("MemAvailable"))
        machine = int(line.split()[1]) * 1024 / workers
    return needed <= min(machine, math.inf if limit is None else limit)


def _status_bytes(pid: int, field: str) -> int:
    """A size from a process' status; workers are copies of the launcher, and start with its."""
    status = Path(f"/proc/{pid}/status")
    if not status.exists():
        return 0
    line = next(x for x in status.read_text().splitlines() if x.startswith(field))
    return int(line.split()[1]) * 1024


def _parents(name: str) -> list[str]:
    """Modules that a tensor stands in."""
    parts = name.split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts))]
