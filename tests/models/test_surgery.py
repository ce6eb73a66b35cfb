"""What changed in a model's shape is found, written down, and done again on an empty copy."""

import json
from typing import Any

import pytest
import torch
from tiny_models import MODELS, tiny_cnn, tiny_llama, tiny_mlp
from torch import Tensor, nn

from tauten.core.errors import CorruptError, InputError
from tauten.data.tensors import main_output
from tauten.models.config_changes import changed_config, merged
from tauten.models.low_rank_residual import LowRankResidual
from tauten.models.outline import outline
from tauten.models.source import shared_copy
from tauten.models.surgery import Surgery, describe, operate, summary


def remove_layer(model: Any) -> None:
    del model.model.layers[1]
    for index, layer in enumerate(model.model.layers):
        layer.self_attn.layer_idx = index
    model.config.num_hidden_layers = len(model.model.layers)


def narrow_feed_forward(model: Any) -> None:
    """A width of its own for each layer."""
    for index, layer in enumerate(model.model.layers):
        width = 64 + 8 * index
        for linear in (layer.mlp.gate_proj, layer.mlp.up_proj):
            linear.weight = nn.Parameter(linear.weight[:width].clone())
            linear.out_features = width
        down = layer.mlp.down_proj
        down.weight = nn.Parameter(down.weight[:, :width].clone())
        down.in_features = width


def tie_layers(model: Any) -> None:
    first, last = model.model.layers[0], model.model.layers[2]
    for name, parameter in first.named_parameters():
        parent, _, key = name.rpartition(".")
        setattr(last.get_submodule(parent), key, parameter)


def give_residuals(model: Any) -> None:
    """A layer with a residual of another's weight, beside a layer that is gone."""
    remove_layer(model)
    first, last = (layer.mlp for layer in model.model.layers)
    last.down_proj.weight = first.down_proj.weight
    factors = torch.randn(64, 5), torch.randn(5, 96)
    last.down_proj = LowRankResidual(last.down_proj, *factors)


def untie_head(model: Any) -> None:
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach() * 2)


def drop_vocabulary(model: Any) -> None:
    """A tied tensor of another size stays tied."""
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach()[:250].clone())
    model.model.embed_tokens.weight = model.lm_head.weight
    model.model.embed_tokens.num_embeddings = model.lm_head.out_features = 250
    model.config.vocab_size = 250


def reshape_cnn(model: Any) -> None:
    """A block removed, a norm folded into a new bias, a convolution replaced by a smaller one."""
    del model[1][0]
    for block in model[1]:
        scale = block.norm.weight / torch.sqrt(block.norm.running_var + block.norm.eps)
        block.conv1.weight = nn.Parameter(block.conv1.weight * scale[:, None, None, None])
        block.conv1.bias = nn.Parameter(block.norm.bias - block.norm.running_mean * scale)
        block.norm = nn.Identity()
    model[2] = nn.Conv2d(16, 8, 3, groups=2, bias=False)
    model[5] = nn.Linear(8, 4)


CASES = {
    "remove_layer": (tiny_llama, remove_layer),
    "narrow_feed_forward": (tiny_llama, narrow_feed_forward),
    "tie_layers": (tiny_llama, tie_layers),
    "give_residuals": (tiny_llama, give_residuals),
    "untie_head": (tiny_llama, untie_head),
    "drop_vocabulary": (tiny_llama, drop_vocabulary),
    "reshape_cnn": (tiny_cnn, reshape_cnn),
}


@pytest.mark.parametrize("case", CASES)
def test_operated_copy_takes_the_reshaped_tensors_and_answers_the_same(case: str) -> None:
    build, change = CASES[case]
    kind = "cnn" if build is tiny_cnn else "llama"
    example = MODELS[kind][1]() % 250 if kind == "llama" else MODELS[kind][1]()
    model = shared_copy(build())
    before = outline(model)
    change(model)
    surgery = describe(before, model)
    assert not surgery.is_empty

    written = json.loads(json.dumps(surgery.to_dict(), sort_keys=True))
    empty = operate(shared_copy(build()), Surgery.from_dict(written))
    assert all(tensor.is_meta for tensor in empty.state_dict().values())
    assert not outline(empty).difference(outline(model))
    empty.load_state_dict(model.state_dict(), assign=True)
    if hasattr(empty, "tie_weights") and case != "untie_head":
        empty.tie_weights()
    with torch.no_grad():
        assert torch.equal(answer(empty.eval(), example), answer(model.eval(), example))


def answer(model: nn.Module, example: Tensor) -> Tensor:
    return main_output(model(example))


def test_nothing_changed_is_an_empty_surgery() -> None:
    model = tiny_llama()
    assert describe(outline(model), model).is_empty


def test_summary_counts_what_is_gone() -> None:
    model = tiny_llama()
    before = outline(model)
    remove_layer(model)
    told = summary(before, outline(model), describe(before, model))
    assert told.startswith("removed 1 of the 3 in model.layers (1)")
    assert f"{before.parameters:,} -> " in told


def test_a_module_of_another_class_is_refused_by_name() -> None:
    model = tiny_mlp()
    before = outline(model)
    model[0] = nn.Sequential(model[0])
    with pytest.raises(InputError, match="0 is a Sequential and was a Linear"):
        describe(before, model)


def test_a_surgery_on_another_model_is_refused() -> None:
    model = tiny_llama()
    before = outline(model)
    remove_layer(model)
    surgery = describe(before, model)
    with pytest.raises(CorruptError, match="doesn't fit this Sequential"):
        operate(tiny_mlp(), surgery)
    with pytest.raises(CorruptError, match="damaged"):
        Surgery.from_dict({"childs": {}})


def test_changes_of_a_configuration_reach_its_inner_parts() -> None:
    before = {"a": 1, "inner": {"b": [1, 2], "c": {"d": 3}}}
    after = {"a": 1, "inner": {"b": [1], "c": {"d": 3, "e": 4}}, "new": None}
    changes = changed_config(before, after)
    assert changes == {"inner": {"b": [1], "c": {"e": 4}}, "new": None}
    assert merged(before, changes) == after
