"""llm-compressor: GPTQ, or AWQ before rounding to nearest."""

from typing import Any

from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme, fake_quantize
from llmcompressor import oneshot
from llmcompressor.modifiers.gptq import GPTQModifier
from llmcompressor.modifiers.quantization import QuantizationModifier
from llmcompressor.modifiers.transform.awq import AWQModifier
from llmcompressor.pipelines.cache import IntermediatesCache
from torch import Tensor, nn
from torch.utils.data import DataLoader

from . import adapter


def quantize(model: Any, ids: Tensor, bits: int, group_size: int, method: str) -> nn.Module:
    """`method` is `gptq`, `gptq mse` (spans of least squared error) or `awq`.

    Groups that don't divide a layer's columns are refused.
    """
    weights = QuantizationArgs(
        num_bits=bits,
        type="int",
        symmetric=False,
        strategy="group",
        group_size=group_size,
        observer="memoryless_mse" if method == "gptq mse" else None,  # None: its default, min-max
    )
    scheme = {"group_0": QuantizationScheme(targets=["Linear"], weights=weights)}
    rounding = QuantizationModifier if method == "awq" else GPTQModifier
    recipe = [rounding(config_groups=scheme, ignore=["lm_head"])]
    if method == "awq":
        recipe.insert(0, AWQModifier())
        # It pins memory for a GPU without asking whether there is one, and fails where there isn't.
        IntermediatesCache.pin_memory = lambda *_: None
    data = DataLoader(adapter.batches(ids), batch_size=None)
    return oneshot(model=model, dataset=data, recipe=recipe, num_calibration_samples=len(ids))


def weight(layer: Any) -> Tensor:
    """GPTQ leaves it rounded, AWQ rounds it in each call; rounding again changes nothing."""
    grid = (layer.weight_scale, layer.weight_zero_point, layer.quantization_scheme.weights)
    return fake_quantize(layer.weight, *grid)


def size_bytes(layer: Any, bits: int, group_size: int) -> int:
    return adapter.integer_bytes(*layer.weight.shape, bits, group_size)


if __name__ == "__main__":
    adapter.main("llmcompressor", quantize, weight, size_bytes)
