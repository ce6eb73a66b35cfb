"""Tiny language models of every family that the native decoder knows, with packed weights."""

import itertools
from collections.abc import Sequence
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from tauten.formats.codebook import CodebookWeight
from tauten.formats.integer import IntegerWeight
from tauten.formats.packed import PackedWeight
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


def random_codebook(matrix: Tensor, bits: int, book_rows: int) -> CodebookWeight:
    """As `random_packed`; `book_rows` is 0 for one book."""
    rows, columns = matrix.shape
    books = torch.randn(-(-rows // (book_rows or rows)), 2**bits) / columns**0.5
    codes = torch.randint(0, 2**bits, (rows, columns), dtype=torch.uint8)
    return CodebookWeight.from_codes((rows, columns), bits, codes, books.half(), book_rows)


def packed_model(
    family: str = "llama",
    bits: int = 4,
    activation: str = "float",
    group_size: int = 32,
    kinds: Sequence[str | int] = ("none", "integer", "float"),
) -> Any:
    """A model of integer weights and codebooks.

    `kinds` are dealt out to its layers in turn: of an integer weight's zero, or the rows of a
    codebook (0 for one book).
    """
    torch.manual_seed(bits)
    name, options = FAMILIES[family]
    config = getattr(transformers, f"{name}Config")(**{**SIZES, **options})
    model = getattr(transformers, f"{name}ForCausalLM")(config).eval()
    kind_of_next = itertools.cycle(kinds)
    new: dict[nn.Module, nn.Module] = {}
    of_weight: dict[int, PackedWeight] = {}
    for module in model.modules():
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.normal_(module.bias)
        if isinstance(module, nn.Linear | nn.Embedding):
            weight = module.weight
            if id(weight) not in of_weight:
                kind = next(kind_of_next)
                of_weight[id(weight)] = (
                    random_codebook(weight, bits, kind)
                    if isinstance(kind, int)
                    else random_packed(weight, bits, group_size, kind)
                )
            new[module] = packed_layer(module, of_weight[id(weight)], activation)
        elif "RMSNorm" in type(module).__name__:
            nn.init.uniform_(module.weight, 0.5, 1.5)
    replace_modules(model, new)
    return model


def built(model: nn.Module) -> Decoder:
    decoder = decoder_for(model)
    assert decoder is not None
    return decoder
