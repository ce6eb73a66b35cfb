"""Where layouts are tried out: a pool of workers, or the processes of torchrun."""

from typing import Any

import torch.distributed as dist

from tauten.parallel.cost_model import Link, Links
from tauten.parallel.executors import PoolExecutor, SpmdExecutor
from tauten.parallel.links import measure_links

# Between processes that share a machine; used where each waits for the others at every step.
LOCAL_LINK = Link(3e-4, 2e9)


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
        return Links(Link(0.0, 2e9), LOCAL_LINK, LOCAL_LINK)

    def agree(self, value: Any) -> Any:
        """What the first process holds."""
        box = [value]
        dist.broadcast_object_list(box, 0)
        return box[0]
