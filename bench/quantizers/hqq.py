"""HQQ: scales and zeros that minimize a sparse norm of the weight's own error; sees no data."""

from typing import Any

import torch
from hqq.core.quantize import BaseQuantizeConfig, HQQLinear
from torch import Tensor, nn

from . import adapter


def quantize(model: Any, ids: Tensor, bits: int, group_size: int, method: str) -> nn.Module:
    """`method` is `round_zero` or `float_zero`: what zeros the search starts from."""
    settings = BaseQuantizeConfig(nbits=bits, group_size=group_size, axis=1)
    settings["weight_quant_params"]["round_zero"] = method == "round_zero"
    for name in adapter.linear_layers(model):
        layer = model.get_submodule(name)
        packed = HQQLinear(layer, settings, compute_dtype=torch.float32, device="cpu")
        model.set_submodule(name, packed)
    return model


def size_bytes(layer: Any, bits: int, group_size: int) -> int:
    """Codes without gaps; a float16 scale and zero a group. Groups go on from row to row."""
    count = layer.meta["shape"].numel()
    return count * bits // 8 + count // group_size * 4


if __name__ == "__main__":
    adapter.main("hqq", quantize, lambda layer: layer.dequantize(), size_bytes)
