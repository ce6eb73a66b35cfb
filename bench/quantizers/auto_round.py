"""AutoRound: roundings and spans learned by signed gradient descent, block by block."""

from typing import Any

import transformers
from auto_round import AutoRound
from torch import Tensor, nn

from . import adapter


def quantize(model: Any, ids: Tensor, bits: int, group_size: int, method: str) -> nn.Module:
    """`method` is the number of iterations a block; 200 is its default."""
    rounding = AutoRound(
        model,
        transformers.AutoTokenizer.from_pretrained(model.name_or_path),
        bits=bits,
        group_size=group_size,
        sym=False,
        iters=int(method),
        dataset=adapter.batches(ids),
        seqlen=ids.shape[1],
        nsamples=len(ids),
        device_map="cpu",
    )
    quantized: nn.Module = rounding.quantize()[0]
    return quantized


def size_bytes(layer: Any, bits: int, group_size: int) -> int:
    return adapter.integer_bytes(*layer.weight.shape, bits, group_size)


if __name__ == "__main__":
    adapter.main("auto-round", quantize, lambda layer: layer.weight, size_bytes)
