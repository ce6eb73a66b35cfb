"""PruneHeads on grouped and plain attention."""

import pytest
import torch
from pruned_models import change, output, pruned
from tiny_models import tiny_bert, tiny_gpt2, tiny_llama
from torch import Tensor, nn
from transformers import (
    LlamaForCausalLM,
    StableLmConfig,
    StableLmForCausalLM,
    T5Config,
    T5EncoderModel,
)

from tauten import InputError, NotApplicableError, PruneHeads

SIZE = 16  # of a head


def tokens(seed: int, rows: int = 8) -> Tensor:
    return torch.randint(0, 256, (rows, 24), generator=torch.manual_seed(seed))


def outputs(model: nn.Module) -> list[nn.Linear]:
    """The layers that read heads."""
    ends = ("o_proj", "attention.output.dense")
    return [m for name, m in model.named_modules() if name.endswith(ends)]


def silence(model: nn.Module, heads: list[int]) -> nn.Module:
    """Nothing reads these heads, others in each layer."""
    for shift, layer in enumerate(outputs(model)):
        for head in heads:
            start = (head + 2 * shift) % 4 * SIZE
            layer.weight.data[:, start : start + SIZE] = 0
    return model


@pytest.mark.parametrize("data", [(), (tokens(1),)], ids=["no data", "data"])
def test_keys_go_with_all_their_queries(data: tuple[Tensor, ...]) -> None:
    model = silence(tiny_llama(), [0, 1])
    made = pruned(model, PruneHeads(0.5, damping=1e-5), *data)
    assert change(model, made, tokens(2)) < 1e-3
    attention = made.model.layers[0].self_attn
    assert [attention.q_proj.out_features, attention.k_proj.out_features] == [32, 16]
    assert attention.num_key_value_groups == 2
    config = made.config
    assert (config.num_attention_heads, config.num_key_value_heads, config.head_dim) == (2, 1, 16)
    assert model.config.num_attention_heads == 4


@pytest.mark.parametrize("data", [(), (tokens(1),)], ids=["no data", "data"])
def test_each_key_loses_as_many_queries(data: tuple[Tensor, ...]) -> None:
    model = silence(tiny_llama(), [0, 3])
    made = pruned(model, PruneHeads(0.5, "query", 1e-5), *data)
    assert change(model, made, tokens(2)) < 1e-3
    attention = made.model.layers[0].self_attn
    assert [attention.q_proj.out_features, attention.k_proj.out_features] == [32, 32]
    assert attention.num_key_value_groups == 1
    assert (made.config.num_attention_heads, made.config.num_key_value_heads) == (2, 2)


def test_heads_of_bert() -> None:
    model = silence(tiny_bert(), [1])
    made = pruned(model, PruneHeads(0.25, damping=1e-5), tokens(1))
    assert change(model, made, tokens(2)) < 1e-3
    attention = made.encoder.layer[0].attention.self
    assert (attention.num_attention_heads, attention.all_head_size) == (3, 48)
    assert made.config.num_attention_heads == 4  # its config knows no other size of heads


@pytest.mark.parametrize("unit", ["group", "query"])
def test_config_builds_the_pruned_shape(unit: str) -> None:
    made = pruned(tiny_llama(), PruneHeads(0.5, unit), tokens(1))
    fresh = LlamaForCausalLM(made.config).eval()
    fresh.load_state_dict(made.state_dict())
    assert torch.equal(output(fresh, tokens(2)), output(made, tokens(2)))
    assert made.generate(tokens(2)[:1], max_new_tokens=3, pad_token_id=0).shape == (1, 27)


def test_of_double_heads_one_stays_and_takes_over() -> None:
    model = tiny_bert()
    for name, parameter in model.named_parameters():
        if ".self." in name:
            parameter.data[16:32] = parameter.data[:16]
    made = pruned(model, PruneHeads(0.25, damping=1e-4), *(tokens(seed) for seed in range(4)))
    blind = pruned(model, PruneHeads(0.25))
    assert change(model, made, tokens(9)) < 0.3 * change(model, blind, tokens(9))


def test_refusals() -> None:
    with pytest.raises(NotApplicableError, match="known by the names of its layers"):
        pruned(tiny_gpt2(), PruneHeads())
    with pytest.raises(NotApplicableError, match=r"4 heads on 2 keys.*would leave none"):
        pruned(tiny_llama(), PruneHeads(0.8))
    with pytest.raises(InputError, match="unit='key'"):
        PruneHeads(0.5, "key")
    with pytest.raises(InputError, match="prune_heads: fraction=0"):
        PruneHeads(0)


def test_tensors_that_depend_on_heads_are_refused() -> None:
    model = tiny_llama()
    model.model.layers[1].self_attn.sinks = nn.Parameter(torch.zeros(4))
    with pytest.raises(NotApplicableError, match=r"layers\.1\.self_attn\.sinks has the shape"):
        pruned(model, PruneHeads(0.5))
    config = T5Config(vocab_size=256, d_model=32, d_kv=8, d_ff=64, num_layers=1, num_heads=4)
    with pytest.raises(NotApplicableError, match="known by the names"):
        pruned(T5EncoderModel(config).eval(), PruneHeads(0.5))


@pytest.mark.parametrize("unit", ["group", "query"])
def test_blocks_count_their_heads_before_the_next_is_pruned(unit: str) -> None:
    sizes = {"vocab_size": 256, "hidden_size": 64, "intermediate_size": 96}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 2}
    torch.manual_seed(0)
    model = StableLmForCausalLM(StableLmConfig(**sizes, **heads)).eval()  # it counts, in `view`
    silence(model, {"group": [0, 1], "query": [0, 3]}[unit])
    made = pruned(model, PruneHeads(0.5, unit, 1e-5), tokens(1))
    assert change(model, made, tokens(2)) < 1e-3
    assert made.model.layers[0].self_attn.num_heads == 2
