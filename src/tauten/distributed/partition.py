"""How much work each worker is given at a time: as it proved fast, and little towards the end."""

import math
from dataclasses import dataclass

AHEAD_S = 2.0  # of work that a worker is given at most
_MOST = 64  # tasks at a time
_WEIGHT = 0.3  # of the newest duration in the average


@dataclass
class Pace:
    """What a worker was measured to do.

    Attributes:
        task_s: Average time of a task, newer ones weighing more; None before the first.
    """

    task_s: float | None = None

    def add(self, seconds: float) -> None:
        """A task took so long."""
        seconds = max(seconds, 1e-6)
        if self.task_s is None:
            self.task_s = seconds
        else:
            self.task_s += _WEIGHT * (seconds - self.task_s)


def shard_size(pace: Pace, paces: list[Pace], remaining: int | None) -> int:
    """Tasks for a worker that asks for more.

    Half of its share of what remains, by measured speed, so that shards get smaller and all
    workers end together; never more than it does in two seconds. The first shard is one task.

    Args:
        pace: Of the worker.
        paces: Of all workers.
        remaining: Tasks that nobody has; None where that isn't known.
    Source: guided self-scheduling, Polychronopoulos and Kuck 1987, with factoring's half.
    """
    if pace.task_s is None:
        return 1
    size = AHEAD_S / pace.task_s
    if remaining is not None:
        rates = sum(1 / p.task_s for p in paces if p.task_s is not None)
        size = min(size, remaining / pace.task_s / rates / 2)
    return max(1, min(_MOST, math.floor(size)))
