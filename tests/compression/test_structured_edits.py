"""Structured edits of models with their own kinds of blocks: what comes back runs, or a refusal."""

from typing import Any

import pytest
import torch
import transformers
from torch import nn

import tauten

SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
EXPERTS = {"num_experts_per_tok": 2, "num_local_experts": 4, "shared_intermediate_size": 48}
MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1}
KINDS = ["mamba", "attention", "mamba"]
DELTA = {  # every fourth layer is an attention
    "num_hidden_layers": 4,
    "num_experts": 4,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
    "head_dim": 8,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
}
DECODERS: dict[str, dict[str, Any]] = {
    "BitNetForCausalLM": {},  # a norm of the hidden features
    "StableLmForCausalLM": {},  # counts heads
    "Gemma2ForCausalLM": {"head_dim": 8},  # repeats keys by their number
    "RecurrentGemmaForCausalLM": {"lru_width": 32},  # heads of a recurrence; one attention
    "GraniteMoeHybridForCausalLM": EXPERTS | MAMBA | {"layer_types": KINDS, "mamba_chunk_size": 8},
    "FalconH1ForCausalLM": MAMBA | {"mamba_d_ssm": 64, "mamba_chunk_size": 8, "head_dim": 8},
    "Qwen3NextForCausalLM": EXPERTS | DELTA,  # makes modules as it runs
}
TECHNIQUES = {
    "width": tauten.PruneWidth(multiple=8),
    "heads": tauten.PruneHeads(0.5),
    "queries": tauten.PruneHeads(0.5, "query"),
    "depth": tauten.PruneDepth(count=1),
    "channels": tauten.PruneChannels(multiple=4),
}
IDS = torch.randint(3, 60, (2, 12), generator=torch.manual_seed(0))


def decoder(name: str) -> nn.Module:
    torch.manual_seed(0)
    kind: Any = getattr(transformers, name)
    made: nn.Module = kind(kind.config_class(**SIZES | DECODERS[name])).eval()
    return made


@pytest.mark.parametrize("data", [None, [IDS]], ids=["no data", "data"])
@pytest.mark.parametrize("technique", TECHNIQUES)
@pytest.mark.parametrize("name", DECODERS)
def test_what_comes_back_runs_or_is_refused(name: str, technique: str, data: Any) -> None:
    model = decoder(name)
    try:
        made: Any = tauten.compress(model, technique=TECHNIQUES[technique], data=data)
    except tauten.TautenError:
        return
    assert sum(p.numel() for p in made.parameters()) < sum(p.numel() for p in model.parameters())
    with torch.no_grad():
        assert made(IDS).logits.isfinite().all()
    assert made.generate(IDS[:1], max_new_tokens=2, do_sample=False).shape[1] > IDS.shape[1]


@pytest.mark.parametrize("unit", ["heads", "queries"])
@pytest.mark.parametrize("name", ["StableLmForCausalLM", "Gemma2ForCausalLM"])
def test_heads_that_modules_count_are_pruned_with_data(name: str, unit: str) -> None:
    made = tauten.compress(decoder(name), technique=TECHNIQUES[unit], data=[IDS])
    assert made.model.layers[0].self_attn.q_proj.out_features == 16


@pytest.mark.parametrize("data", [None, [IDS]], ids=["no data", "data"])
def test_a_norm_of_hidden_features_refuses_the_width(data: Any) -> None:
    with pytest.raises(tauten.NotApplicableError, match=r"ffn_sub_norm\.weight has the shape"):
        tauten.compress(decoder("BitNetForCausalLM"), technique=TECHNIQUES["width"], data=data)


def test_a_depthwise_convolution_of_hidden_features_refuses_the_width() -> None:
    sizes = {"depths": [1] * 4, "hidden_sizes": [8, 16, 24, 32], "decoder_hidden_size": 16}
    config = transformers.SegformerConfig(**sizes, num_attention_heads=[1, 2, 2, 4])
    model = transformers.SegformerForImageClassification(config).eval()
    with pytest.raises(tauten.NotApplicableError, match=r"mlp\.dwconv\.dwconv\.weight has the sh"):
        tauten.compress(model, technique=TECHNIQUES["width"])


def test_the_depth_of_a_decoder_leaves_what_counts_the_encoder() -> None:
    sizes = {"vocab_size": 64, "hidden_size": 32, "num_encoder_layers": 3, "num_decoder_layers": 3}
    heads = {"num_encoder_attention_heads": 4, "num_decoder_attention_heads": 4}
    config = transformers.ProphetNetConfig(**sizes, **heads, pad_token_id=0)
    torch.manual_seed(0)
    model = transformers.ProphetNetForConditionalGeneration(config).eval()
    call = {"input_ids": IDS, "decoder_input_ids": IDS[:, :6]}
    made = tauten.compress(model, technique=TECHNIQUES["depth"], data=[call])
    assert len(made.prophetnet.decoder.layers) == 2
    assert made.config.num_encoder_layers == len(made.prophetnet.encoder.layers) == 3
