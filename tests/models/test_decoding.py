"""Which models get a native decoder."""

from typing import Any

import pytest
import torch
import transformers
from packed_decoders import SIZES, packed_model, random_codebook, random_packed
from torch import nn

from tauten.models.decoding import decoder_for
from tauten.runtime import library

pytestmark = pytest.mark.skipif(library.load() is None, reason="the native library isn't built")


def test_unknown_models_have_no_decoder() -> None:
    assert decoder_for(nn.Linear(3, 3)) is None
    gpt2 = transformers.GPT2Config(vocab_size=50, n_embd=16, n_layer=1, n_head=2)
    assert decoder_for(transformers.GPT2LMHeadModel(gpt2)) is None
    config = transformers.LlamaConfig(**SIZES)
    assert decoder_for(transformers.LlamaForCausalLM(config)) is None


def change_activation(model: Any) -> None:
    model.config.hidden_act = "gelu"


def change_window(model: Any) -> None:
    model.config.sliding_window = 100


def change_rotary(model: Any) -> None:
    model.model.rotary_emb.rope_type = "dynamic"


def change_dtype(model: Any) -> None:
    model.to(torch.bfloat16)


def change_module(model: Any) -> None:
    model.model.norm = nn.LayerNorm(72)


def change_linear(model: Any) -> None:
    model.model.layers[1].mlp.up_proj = nn.Linear(72, 104, bias=False)


def change_groups(model: Any) -> None:
    head = model.lm_head
    head.packed = random_packed(head.weight, 4, 48, "none")


def change_to_wide_book(model: Any) -> None:
    """No kernel looks into books of 5 bits."""
    head = model.lm_head
    head.packed = random_codebook(head.weight, 5, 1)


def change_heads(model: Any) -> None:
    attention = model.model.layers[1].self_attn
    attention.k_proj.packed = random_packed(torch.empty(12, 72), 4, 32, "none")


@pytest.mark.parametrize(
    "change",
    [
        change_activation,
        change_window,
        change_rotary,
        change_dtype,
        change_module,
        change_linear,
        change_groups,
        change_to_wide_book,
        change_heads,
    ],
    ids=lambda change: change.__name__,
)
def test_changed_models_have_no_decoder(change: Any) -> None:
    model = packed_model("mistral")
    assert decoder_for(model) is not None
    change(model)
    assert decoder_for(model) is None
