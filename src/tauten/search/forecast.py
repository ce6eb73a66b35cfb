"""What a run will need, said before it starts."""

import os
import re
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from tauten.core.errors import GoalError
from tauten.core.figures import format_bytes
from tauten.core.goal import Goal
from tauten.models.source import Source
from tauten.models.structure import Structure

BATCH_TOKENS = 1024
LIBRARIES_BYTES = 500 * 10**6  # torch and transformers themselves, measured
TEMPORARIES = 3  # logits, their float32 copy and the loss's softmax live at once


@dataclass(frozen=True)
class Forecast:
    """Estimated needs of a run.

    Attributes:
        memory_bytes: Peak resident memory.
        disk_bytes: In the output folder, trials included.
        time_s: Wall time.
        stream: Blocks are loaded one at a time, because the model is large for the memory.
    """

    memory_bytes: int
    disk_bytes: int
    time_s: float
    stream: bool


def forecast(
    source: Source,
    model: nn.Module,
    structure: Structure,
    trials: int,
    tokens: int,
    goal: Goal | None = None,
    in_memory: bool = False,
) -> Forecast:
    """Estimate memory, disk and time.

    Args:
        source: Of the model.
        model: Its skeleton.
        structure: Of the model.
        trials: Recipes that may be tried, 0 where nothing is evaluated.
        tokens: Tokens (or rows) of one evaluation.
        goal: Of the run; without a limit on memory, what the machine has free is the limit.
        in_memory: A step changes the model as a whole, so blocks can't be loaded one at a time.
    Raises:
        GoalError: Even one block at a time needs more than the limit, or a model that is to be
            timed can't be in memory whole.
    """
    memory_limit_bytes = goal.max_memory_bytes if goal else None
    weights = sum(p.numel() for p in model.parameters())
    part_weights = _part_weights(model, structure)
    outer, block = part_weights.pop(""), max(part_weights.values(), default=0)
    working = LIBRARIES_BYTES + (_activation_bytes(model) if tokens else 0)
    largest = max((p.numel() for p in model.parameters()), default=0)
    whole = working + 4 * weights * 2  # float32 original and candidate, at their worst
    streamed = working + 4 * (outer + 2 * block) if tokens else working + 6 * largest + 2 * block
    limit = memory_limit_bytes or available_memory_bytes()
    can_stream = source.reader is not None and bool(structure.blocks) and not in_memory
    if source.reader is None:
        whole, streamed = whole - 4 * weights + source.size_bytes, whole
    stream = can_stream and (whole > limit or not tokens)
    needed = streamed if stream else whole
    if needed > limit and memory_limit_bytes is not None:
        why = f"; {source.whole}" if source.whole else ""
        raise GoalError(
            f"max_memory_bytes: this needs about {format_bytes(needed)} of memory, the limit "
            f"is {format_bytes(limit)}{why}; raise the limit or pass a smaller model"
        )
    if stream and goal and goal.is_about_latency:
        raise GoalError(
            f"{source.name} must be in memory to be timed: that needs about "
            f"{format_bytes(whole)}, {format_bytes(limit)} are free; drop the latency goal"
        )
    disk = int(weights * (1.1 if not trials else 6))  # the levels of a search stay until it ends
    if goal and goal.is_about_latency:
        disk += 2 * source.size_bytes  # the original is a trial too, and may become the artifact
    seconds = _seconds(weights, trials, tokens)
    return Forecast(int(needed), disk, seconds, stream)


def available_memory_bytes() -> int:
    """Memory that a new process could use now, what files are cached in included."""
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        found = re.search(r"^MemAvailable:\s+(\d+) kB$", meminfo.read_text(), re.MULTILINE)
        if found:
            return int(found[1]) * 1024
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _part_weights(model: nn.Module, structure: Structure) -> dict[str, int]:
    counts = {"": 0, **dict.fromkeys(structure.blocks, 0)}
    for name, parameter in model.named_parameters():
        counts[structure.block_of(name)] += parameter.numel()
    return counts


def _activation_bytes(model: nn.Module) -> int:
    vocabulary = int(getattr(getattr(model, "config", None), "vocab_size", 0) or 1000)
    return TEMPORARIES * BATCH_TOKENS * vocabulary * 4 + 2**28  # and the kept KL reference


def operations_per_s() -> float:
    """Floating-point operations a second, by a probing product."""
    size = 1024
    left, right = (
        torch.ones(size, size, dtype=torch.float32),
        torch.ones(size, size, dtype=torch.float32),
    )
    left @ right
    start = time.perf_counter()
    left @ right
    return 2 * size**3 / (time.perf_counter() - start)


def _seconds(weights: int, trials: int, tokens: int) -> float:
    """Two operations a weight and token, and the packing."""
    evaluate = 2 * weights * tokens / operations_per_s() * 1.5
    pack = weights / 4e6  # calibrated, measured on two cores
    return (trials + 3) * evaluate + max(1, trials) * pack
