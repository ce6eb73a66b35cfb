"""Layers dealt out to workers: the model's outputs within rounding, and its choice of token."""

from typing import Any

import pytest
import torch
import transformers
from parallel_layouts import laid_out, main, without_cache
from tiny_models import MODELS, tiny_cnn, tiny_gpt2, tiny_llama
from torch import nn

import tauten
from tauten.core.errors import InputError
from tauten.parallel.plan import Layout
from tauten.parallel.tensor_parallel import Cut, shard_layer, tensor_plan

TWO = Layout(tensor=2)
TOKENS = torch.arange(4 * 12).view(4, 12) * 5 % 256


def three_keys(**options: Any) -> nn.Module:
    """Six heads of queries and three of keys, which two workers can't share evenly."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 251, "hidden_size": 96, "intermediate_size": 112}
    heads = {"num_attention_heads": 6, "num_key_value_heads": 3, "num_hidden_layers": 2}
    config = transformers.LlamaConfig(**{**sizes, **heads, **options})
    return transformers.LlamaForCausalLM(config).eval()


def assert_same(model: nn.Module, x: torch.Tensor, tolerance: float = 1e-5) -> None:
    with torch.inference_mode():
        expected = main(without_cache(model)(x))
        shorter = main(without_cache(model)(x[:1]))
    with laid_out(model, TWO) as parallel:
        made, again = main(parallel(x)), main(parallel(x[:1]))
    for ours, theirs in ((made, expected), (again, shorter)):
        assert (ours - theirs).abs().max() <= tolerance * theirs.abs().max()
        assert torch.equal(ours.argmax(-1), theirs.argmax(-1))


@pytest.mark.parametrize("name", ["llama_untied", "gpt2", "bert", "mlp", "attention"])
def test_dense_models(name: str) -> None:
    build, example = MODELS[name]
    assert_same(build(), example())


def test_uneven_heads_and_biases() -> None:
    model = three_keys(attention_bias=True, mlp_bias=True)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter)
    assert_same(model, TOKENS)
    assert tensor_plan(model).most_workers == 3


@pytest.mark.parametrize(
    "technique",
    [
        tauten.RTN(4, group_size=16),
        tauten.RTN(4, group_size=48),  # cuts the heads of one key, so rows are dealt out
        tauten.RTN(4, group_size=0),
        tauten.KQuant(4),
        tauten.Codebook(3),
        tauten.RTN(8, group_size=16, activation="int8"),
    ],
    ids=str,
)
def test_packed_layers_cut_themselves(technique: Any) -> None:
    # A sum in another order may round an activation to the neighbouring of 255 steps.
    tolerance = 1e-3 if getattr(technique, "activation", "float") == "int8" else 1e-5
    assert_same(tauten.quantize(three_keys(), technique=technique), TOKENS, tolerance)


def test_the_plan_follows_from_the_units() -> None:
    cuts = {
        cut.layer.removeprefix("model.layers.0."): cut for cut in tensor_plan(three_keys()).cuts
    }
    assert cuts["self_attn.q_proj"].unit == 32 and cuts["self_attn.k_proj"].unit == 16
    assert cuts["self_attn.o_proj"] == Cut("model.layers.0.self_attn.o_proj", 1, 32)
    assert cuts["mlp.up_proj"].dim == 0 and cuts["mlp.down_proj"].dim == 1
    assert cuts["lm_head"].gathered and len(cuts) == 8 + 7
    packed = tauten.quantize(three_keys(), technique=tauten.RTN(4, group_size=28))
    cuts = {cut.layer: cut for cut in tensor_plan(packed).cuts}
    assert cuts["model.layers.1.self_attn.o_proj"].gathered
    assert cuts["model.layers.1.self_attn.o_proj"].unit_in == 32
    assert cuts["model.layers.1.mlp.down_proj"] == Cut("model.layers.1.mlp.down_proj", 1, 28)


def test_parts_of_layers_add_up_or_stand_in_a_row() -> None:
    x = torch.randn(5, 24)
    conv = transformers.pytorch_utils.Conv1D(10, 24)
    nn.init.normal_(conv.bias)
    for layer in (nn.Linear(24, 10), nn.Linear(24, 10, bias=False), conv):
        rows = [shard_layer(layer, rank, 3, 0, 2)(x) for rank in range(3)]
        assert [part.shape[1] for part in rows] == [4, 4, 2]
        assert torch.allclose(torch.cat(rows, 1), layer(x), atol=1e-6)
        columns = [shard_layer(layer, rank, 2, 1, 8) for rank in range(2)]
        parts = [columns[0](x[:, :16]), columns[1](x[:, 16:])]
        assert torch.allclose(sum(parts), layer(x), atol=1e-5)


def test_too_many_workers_and_unknown_models_are_refused() -> None:
    with pytest.raises(InputError, match="at most 2"), laid_out(tiny_llama(), Layout(tensor=3)):
        pass
    with pytest.raises(InputError, match="no attention"), laid_out(tiny_cnn(), TWO):
        pass
    assert tensor_plan(tiny_gpt2()).obstacles and tensor_plan(tiny_gpt2()).most_workers > 1


def test_generate_agrees_among_workers() -> None:
    options = {"max_new_tokens": 4, "do_sample": False}
    expected = tiny_llama().generate(TOKENS[:1], **options)
    with laid_out(tiny_llama(), TWO) as parallel:
        assert torch.equal(parallel.generate(TOKENS[:1], **options), expected)


def test_features_with_a_convolution_of_their_own_stay_whole() -> None:
    sizes = {"depths": [1] * 4, "hidden_sizes": [8, 16, 24, 32], "decoder_hidden_size": 16}
    config = transformers.SegformerConfig(**sizes, num_attention_heads=[1, 2, 2, 4])
    plan = tensor_plan(transformers.SegformerForImageClassification(config).eval())
    assert not any("mlp" in cut.layer for cut in plan.cuts)
    assert any("dwconv.weight has the shape" in why for why in plan.obstacles)


def test_a_plan_says_nothing_of_channels(caplog: Any) -> None:
    class Branches(nn.Module):
        """Can't be traced as a whole, but in parts."""

        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner(x) if x.sum() > 0 else x

    with caplog.at_level("WARNING"):
        assert tensor_plan(Branches()).most_workers > 1
    assert not caplog.records
