"""Copies of a block that calibration runs, or that techniques train."""

import copy
from typing import Any

from torch import nn

from tauten.formats.packed import PackedWeight
from tauten.models.packing import replace_modules, unpacked_layer
from tauten.runtime.modules import PackedLinear


def dense_copy(block: nn.Module) -> nn.Module:
    """A copy whose packed linear layers are dense."""
    block = copy.deepcopy(block)
    packed = [module for module in block.modules() if isinstance(module, PackedLinear)]
    replace_modules(block, {layer: unpacked_layer(layer) for layer in packed})
    return block


def tunable_copy(block: nn.Module) -> nn.Module:
    """A float32 copy that has its packed weights in common with the block."""
    shared: dict[int, Any] = {id(m): m for m in block.modules() if isinstance(m, PackedWeight)}
    block = copy.deepcopy(block, shared)
    for module in block.modules():
        if not isinstance(module, PackedWeight):
            for key, tensor in module._parameters.items():
                if tensor is not None and tensor.is_floating_point():
                    copied = nn.Parameter(tensor.detach().float(), requires_grad=False)
                    module._parameters[key] = copied
            for key, buffer in module._buffers.items():
                if buffer is not None and buffer.is_floating_point():
                    module._buffers[key] = buffer.float()
    return block
