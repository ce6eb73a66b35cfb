"""What a forward writes into a model: caches, counters, running statistics."""

import contextlib
from collections.abc import Iterator

from torch import Tensor, nn

from tauten.formats.packed import PackedWeight


def written_buffers(model: nn.Module) -> Iterator[tuple[nn.Module, str, Tensor]]:
    """Buffers that a forward may write, with their modules and keys: all but packed weights."""
    for module in model.modules():
        if not isinstance(module, PackedWeight):
            for key, buffer in module._buffers.items():
                if buffer is not None:
                    yield module, key, buffer


@contextlib.contextmanager
def state_kept(model: nn.Module) -> Iterator[None]:
    """Put back what calls in this context write into buffers, or put in their place."""
    before = [(*place, place[2]._version, place[2].clone()) for place in written_buffers(model)]
    try:
        yield
    finally:
        for module, key, buffer, version, value in before:
            if buffer._version != version:
                buffer.copy_(value)
            module._buffers[key] = buffer
