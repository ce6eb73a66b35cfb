"""Blocks and units of every kind of model."""

import pytest
from tiny_models import MODELS
from torch import nn

from tauten.models.structure import find_structure, packable_modules


def units_of(kind: str, block: str) -> list[tuple[str, ...]]:
    structure = find_structure(MODELS[kind][0]())
    prefix = f"{block}." if block else ""
    return [
        tuple(name.removeprefix(prefix) for name in unit.names)
        for unit in structure.units
        if unit.block == block
    ]


def test_llama() -> None:
    assert units_of("llama", "model.layers.1") == [
        ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        ("self_attn.o_proj",),
        ("mlp.gate_proj", "mlp.up_proj"),
        ("mlp.down_proj",),
    ]
    assert units_of("llama", "") == [("model.embed_tokens", "lm_head")]
    assert units_of("llama_untied", "") == [("model.embed_tokens",), ("lm_head",)]


def test_gpt2() -> None:
    assert units_of("gpt2", "transformer.h.2") == [
        ("attn.c_attn",),
        ("attn.c_proj",),
        ("mlp.c_fc",),
        ("mlp.c_proj",),
    ]
    assert units_of("gpt2", "")[0] == ("transformer.wte", "lm_head")


def test_bert() -> None:
    block = "encoder.layer.0"
    assert units_of("bert", block)[0] == tuple(
        f"attention.self.{name}" for name in ("query", "key", "value")
    )
    assert len(units_of("bert", block)) == 4


def test_cnn_blocks_are_the_repeated_part() -> None:
    structure = find_structure(MODELS["cnn"][0]())
    assert structure.blocks == ("1.0", "1.1", "1.2")
    assert structure.block_of("1.0.conv1") == "1.0"
    assert structure.block_of("10.conv1") == ""


def test_plain_model_has_no_blocks() -> None:
    structure = find_structure(MODELS["mlp"][0]())
    assert structure.blocks == ()
    assert [unit.names for unit in structure.units] == [("0",), ("1",)]


def test_block_names_that_begin_alike_are_told_apart() -> None:
    layers = nn.ModuleList(nn.Sequential(nn.Linear(4, 4)) for _ in range(12))
    structure = find_structure(nn.ModuleDict({"layers": layers}))
    assert structure.block_of("layers.1.0") == "layers.1"
    assert structure.block_of("layers.11.0") == "layers.11"


def test_blocks_that_share_a_tensor_are_no_blocks() -> None:
    layers = nn.ModuleList(nn.Sequential(nn.Linear(4, 4)) for _ in range(3))
    layers[2][0].weight = layers[0][0].weight
    structure = find_structure(nn.ModuleDict({"layers": layers}))
    assert structure.blocks == ()
    assert structure.units[0].names == ("layers.0.0", "layers.2.0")


def test_layers_that_read_or_rewrite_weights_themselves_are_left() -> None:
    model = nn.ModuleDict(
        {"attention": nn.MultiheadAttention(8, 2), "table": nn.Embedding(4, 8, max_norm=1.0)}
    )
    assert [name for name, _ in packable_modules(model)] == []


@pytest.mark.filterwarnings("ignore:Initializing zero-element")
def test_layers_without_a_weight_value_are_left() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 0), nn.Linear(0, 4), nn.Embedding(0, 4))
    assert [name for name, _ in packable_modules(model)] == ["0"]
