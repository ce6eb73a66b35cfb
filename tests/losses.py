"""How many workers of a model were lost, once the loss of a killed one was noticed."""

from torch import Tensor
from waiting import until

from tauten.distributed.module import DistributedModule


def losses(many: DistributedModule, tokens: Tensor) -> int:
    """Call until a loss is known: a worker killed after its last answer is missed by no task."""

    def is_known() -> bool:
        if not many.cluster.lost:
            many(tokens)
        return bool(many.cluster.lost)

    until(is_known)
    return len(many.cluster.lost)
