"""llm-compressor: GPTQ, AWQ before rounding to nearest, Wanda, SparseGPT."""

from typing import Any

from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme, fake_quantize
from llmcompressor import oneshot
from llmcompressor.modifiers import Modifier
from llmcompressor.modifiers.gptq import GPTQModifier
from llmcompressor.modifiers.pruning import SparseGPTModifier, WandaPruningModifier
from llmcompressor.modifiers.quantization import QuantizationModifier
from llmcompressor.modifiers.transform.awq import AWQModifier
from llmcompressor.pipelines.cache import IntermediatesCache
from torch import Tensor, nn
from torch.utils.data import DataLoader

from . import adapter

PRUNING = {"wanda": WandaPruningModifier, "sparsegpt": SparseGPTModifier}


def quantize(model: Any, ids: Tensor, bits: int, group_size: int, method: str) -> nn.Module:
    """Apply some modifiers, separated by commas.

    They are `gptq`, `gptq mse` (spans of least squared error), `awq`, and `wanda` and `sparsegpt`
    of half of the weights. Groups that don't divide a layer's columns are refused.
    """
    recipe = []
    for name in method.split(", "):
        if name in PRUNING:
            recipe.append(PRUNING[name](sparsity=0.5, ignore=["re:.*lm_head"]))
        else:
            recipe += _rounding(bits, group_size, name)
    data = DataLoader(adapter.batches(ids), batch_size=None)
    return oneshot(model=model, dataset=data, recipe=recipe, num_calibration_samples=len(ids))


def _rounding(bits: int, group_size: int, method: str) -> list[Modifier]:
    weights = QuantizationArgs(
        num_bits=bits,
        type="int",
        symmetric=False,
        strategy="group",
        group_size=group_size,
        observer="memoryless_mse" if method == "gptq mse" else None,  # None: its default, min-max
    )
    scheme = {"group_0": QuantizationScheme(targets=["Linear"], weights=weights)}
    if method != "awq":
        return [GPTQModifier(config_groups=scheme, ignore=["lm_head"])]
    # It pins memory for a GPU without asking whether there is one, and fails where there isn't.
    IntermediatesCache.pin_memory = lambda *_: None
    return [AWQModifier(), QuantizationModifier(config_groups=scheme, ignore=["lm_head"])]


def weight(layer: Any) -> Tensor:
    """GPTQ leaves it rounded, AWQ rounds it in each call; rounding again changes nothing."""
    if not hasattr(layer, "weight_scale"):  # pruned, not rounded
        return layer.weight
    grid = (layer.weight_scale, layer.weight_zero_point, layer.quantization_scheme.weights)
    return fake_quantize(layer.weight, *grid)


def size_bytes(layer: Any, bits: int, group_size: int) -> int:
    found = weight(layer)
    if (found == 0).float().mean() > 0.45:  # more than rounding to zero makes
        return adapter.pruned_bytes(found, bits, group_size)
    return adapter.integer_bytes(*found.shape, bits, group_size)


if __name__ == "__main__":
    adapter.main("llmcompressor", quantize, weight, size_bytes)
