"""How many workers of a model were lost, once the loss of a killed one was noticed."""

import time

from torch import Tensor

from tauten.distributed.module import DistributedModule

_WAIT_S = 30.0


def losses(many: DistributedModule, tokens: Tensor) -> int:
    """Call until a loss is known: a worker killed after its last answer is missed by no task."""
    ends_s = time.monotonic() + _WAIT_S
    while not many.cluster.lost and time.monotonic() < ends_s:
        many(tokens)
    return len(many.cluster.lost)
