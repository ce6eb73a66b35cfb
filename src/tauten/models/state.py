"""A model's tensors: whether they are there, and what a forward writes into them."""

import contextlib
import logging
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.parameter import is_lazy

from tauten.core.errors import InputError
from tauten.formats.packed import PackedWeight

_log = logging.getLogger(__name__)


def say_if_training(model: nn.Module) -> None:
    """Say that a model whose training mode computes something else is taken in evaluation mode."""
    modes = (m for m in model.modules() if m.training and isinstance(m, _BatchNorm | _DropoutNd))
    if any(not isinstance(m, _DropoutNd) or m.p for m in modes):
        name = type(model).__name__
        _log.warning("%s was in training mode; the result is in evaluation mode", name)


def check_loaded(model: nn.Module) -> None:
    """Raise InputError where a tensor of a model in memory has no values yet, or isn't plain."""
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        place = f"tensor {name!r} of {type(model).__name__}"
        if is_lazy(tensor):
            raise InputError(f"{place} has no shape yet: call the model once on an input first")
        if tensor.is_meta:
            raise InputError(f"{place} has no values (it is on the meta device): load it first")
        if tensor.layout is not torch.strided or tensor.is_quantized:
            kind = f"of dtype {tensor.dtype}" if tensor.is_quantized else f"{tensor.layout}"
            raise InputError(f"{place} is {kind}: make it dense first, by to_dense or dequantize")


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
    before = [(*slot, _version(slot[2]), slot[2].clone()) for slot in written_buffers(model)]
    try:
        yield
    finally:
        for module, key, buffer, version, value in before:
            if version is None or buffer._version != version:
                buffer.copy_(value)
            module._buffers[key] = buffer


def _version(tensor: Tensor) -> int | None:
    """Grows with each writing; None where that isn't told, of what inference mode made."""
    return None if tensor.is_inference() else tensor._version
