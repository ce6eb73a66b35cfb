"""Tiny language models of every family that the native decoder knows, with packed weights."""

import itertools
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from tauten.formats.integer import IntegerWeight
from tauten.models.decoding import decoder_for
from tauten.models.packing import packed_layer, replace_modules
from tauten.runtime.decoder import Decoder

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
SIZES = {
    "vocab_size": 203,
    "hidden_size": 72,
    "intermediate_size": 104,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "max_position_embeddings": 600,
    "attn_implementation": "eager",
}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {"tie_word_embeddings": True}),
    "llama3": ("Llama", {"rope_parameters": LLAMA3, "attention_bias": True, "mlp_bias": True}),
    "llama_yarn": ("Llama", {"rope_parameters": {"rope_type": "yarn", "factor": 4.0}}),
    "llama_wide": ("Llama", {"head_dim": 40, "num_key_value_heads": 1}),
    "qwen2": ("Qwen2", {"tie_word_embeddings": True}),
    "qwen3": ("Qwen3", {"tie_word_embeddings": False}),
    "mistral": ("Mistral", {"sliding_window": None}),
}


def random_packed(matrix: Tensor, bits: int, group_size: int, zero_kind: str) -> IntegerWeight:
    """Random codes at about the size of the matrix: the values need not be near it."""
    rows, columns = matrix.shape
    cells = (rows, -(-columns // (group_size or columns)))
    scale = (torch.rand(cells) + 0.5) * 2.5 / 2**bits / columns**0.5
    zero = None
    if zero_kind == "integer":
        zero = torch.full(cells, 2 ** (bits - 1), dtype=torch.uint8)
    elif zero_kind == "float":
        zero = (-(2 ** (bits - 1)) * scale).half()
    codes = torch.randint(0, 2**bits, (rows, columns), dtype=torch.uint8)
    return IntegerWeight.from_codes((rows, columns), bits, group_size, codes, scale.half(), zero)


def packed_model(
    family: str = "llama", bits: int = 4, activation: str = "float", group_size: int = 32
) -> Any:
    torch.manual_seed(bits)
    name, options = FAMILIES[family]
    config = getattr(transformers, f"{name}Config")(**{**SIZES, **options})
    model = getattr(transformers, f"{name}ForCausalLM")(config).eval()
    zeros = itertools.cycle(("none", "integer", "float"))
    new, of_weight = {}, {}
    for module in model.modules():
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.normal_(module.bias)
        if isinstance(module, nn.Linear | nn.Embedding):
            weight = module.weight
            if id(weight) not in of_weight:
                packed = random_packed(weight.detach(), bits, group_size, next(zeros))
                of_weight[id(weight)] = packed
            new[module] = packed_layer(module, of_weight[id(weight)], activation)
        elif "RMSNorm" in type(module).__name__:
            nn.init.uniform_(module.weight, 0.5, 1.5)
    replace_modules(model, new)
    return model


def built(model: nn.Module) -> Decoder:
    decoder = decoder_for(model)
    assert decoder is not None
    return decoder
