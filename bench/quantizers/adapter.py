"""The command of a quantizer's file, run by the Python of that quantizer's environment.

    python -m bench.quantizers.NAME MODEL TOKENS OUT BITS GROUP_SIZE METHOD

MODEL is a Hugging Face folder, TOKENS what `texts.tokens` wrote. Into OUT go `weights.safetensors`,
the weights that the quantized decoder computes with, in float32, and then `facts.json`: what it
took and how many bytes the decoder's linear layers need. Embedding and head stay as they are.
"""

import importlib.metadata
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

BATCH = 2  # windows

Quantize = Callable[[Any, Tensor, int, int, str], nn.Module]
"""(model, (windows, length) token ids, bits, group size, method) -> the quantized model."""


def main(
    distribution: str,
    quantize: Quantize,
    weight: Callable[[Any], Tensor],
    size_bytes: Callable[[Any, int, int], int],
) -> None:
    """Run a quantizer as the command line says.

    Args:
        distribution: Its name in the package index.
        quantize: Quantizes the linear layers of a model's decoder.
        weight: The weight that a quantized layer computes with.
        size_bytes: Bytes of a quantized layer, from its bits and group size too.
    """
    folder, tokens, out, bits, group_size, method = sys.argv[1:]
    torch.set_num_threads(1)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    names = linear_layers(model)
    count = sum(model.get_submodule(name).weight.numel() for name in names)
    ids = load_file(tokens)["calibration"]
    wall, cpu = time.perf_counter(), time.process_time()
    quantized = quantize(model, ids, int(bits), int(group_size), method)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    layers = {name: quantized.get_submodule(name) for name in names}
    size = sum(size_bytes(layer, int(bits), int(group_size)) for layer in layers.values())
    facts = {
        "version": importlib.metadata.version(distribution),
        "wall_s": wall,
        "cpu_s": cpu,
        "peak_rss_bytes": peak_rss_bytes(),
        "size_bytes": size,
        "bits_per_weight": 8 * size / count,
    }
    tensors = {f"{name}.weight": weight(layer) for name, layer in layers.items()}
    tensors |= {key: value for key, value in quantized.state_dict().items() if "norm" in key}
    plain = {key: value.detach().float().contiguous() for key, value in tensors.items()}
    save_file(plain, Path(out) / "weights.safetensors")
    (Path(out) / "facts.json").write_text(json.dumps(facts))


def linear_layers(model: nn.Module) -> list[str]:
    """Names of the linear layers of a decoder, without the head."""
    layers = ((name, module) for name, module in model.named_modules() if name != "lm_head")
    return [name for name, module in layers if isinstance(module, nn.Linear)]


def batches(ids: Tensor) -> list[dict[str, Tensor]]:
    """What a model is called with to see the windows."""
    return [
        {"input_ids": part, "attention_mask": torch.ones_like(part)} for part in ids.split(BATCH)
    ]


def integer_bytes(rows: int, columns: int, bits: int, group_size: int) -> int:
    """Codes and integer zeros of `bits` without gaps, scales of 16 bits; the last group is shorter.

    Favours containers that leave gaps, as compressed-tensors does with 3 bits (10 codes in 32).
    """
    return rows * -(-columns * bits // 8) + _grid_bytes(rows, columns, bits, group_size)


def pruned_bytes(weight: Tensor, bits: int, group_size: int) -> int:
    """A bit a weight for the mask, and the kept ones in 16 bits or as codes of fewer."""
    rows, columns = weight.shape
    kept = rows * -(-columns // 8) + -(-int(weight.count_nonzero()) * bits // 8)
    return kept if bits == 16 else kept + _grid_bytes(rows, columns, bits, group_size)


def _grid_bytes(rows: int, columns: int, bits: int, group_size: int) -> int:
    groups = -(-columns // group_size)
    return rows * groups * 2 + -(-rows * groups * bits // 8)


def peak_rss_bytes() -> int:
    """Most memory that this process had resident; `ru_maxrss` would start with its parent's."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])
