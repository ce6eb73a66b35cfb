"""Mixtures of experts: each expert is packed, and calibrated on the tokens that reach it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn

import tauten
from tauten.core.measurement import LayerRecord
from tauten.core.recipe import Recipe
from tauten.models import experts
from tauten.models.calibration import Calibration, CalibrationBatch
from tauten.models.experts import Experts, unfuse_experts
from tauten.models.packing import packed_modules
from tauten.models.source import open_source, shared_copy
from tauten.models.structure import find_structure
from tauten.models.walk import Walk

SIZES: dict[str, Any] = {
    "vocab_size": 256,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 128,
}
TOKENS = torch.arange(96).view(2, 48) * 5 % 256


def tiny_mixtral() -> nn.Module:
    torch.manual_seed(0)
    config = transformers.MixtralConfig(**SIZES, intermediate_size=96, num_local_experts=4)
    return transformers.MixtralForCausalLM(config).eval()


def tiny_qwen2_moe() -> nn.Module:
    """With an expert that all tokens share."""
    torch.manual_seed(0)
    own = {"moe_intermediate_size": 48, "shared_expert_intermediate_size": 96, "num_experts": 4}
    config = transformers.Qwen2MoeConfig(**SIZES, intermediate_size=96, **own)
    return transformers.Qwen2MoeForCausalLM(config).eval()


def tiny_qwen3_moe() -> nn.Module:
    torch.manual_seed(0)
    own = {"moe_intermediate_size": 48, "num_experts": 4, "head_dim": 16}
    config = transformers.Qwen3MoeConfig(**SIZES, intermediate_size=96, **own)
    return transformers.Qwen3MoeForCausalLM(config).eval()


BUILDS = (tiny_mixtral, tiny_qwen2_moe, tiny_qwen3_moe)
Build = Callable[[], nn.Module]


def logits(model: nn.Module, tokens: torch.Tensor = TOKENS) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(tokens).logits
    return found


@pytest.mark.parametrize("build", BUILDS)
def test_unfused_experts_compute_the_same(build: Build) -> None:
    model = build()
    before, names = logits(model), list(model.state_dict())
    copy = shared_copy(model)
    layers = [module for module in copy.modules() if isinstance(module, Experts)]
    assert len(layers) == 2 and len(layers[0]) == 4
    assert torch.allclose(logits(copy), before, atol=1e-6)
    fused = model.model.layers[0].mlp.experts.gate_up_proj
    assert layers[0][3].up_proj.weight.data_ptr() == fused[3, len(fused[0]) // 2].data_ptr()
    assert list(model.state_dict()) == names, "the model itself isn't changed"


@pytest.mark.parametrize("build", BUILDS)
def test_experts_are_packed(build: Build) -> None:
    model = build()
    before = logits(model)
    packed = tauten.quantize(model, technique=tauten.RTN(8, 32))
    names = [name for name, _ in packed_modules(packed) if ".experts." in name]
    assert len(names) == 2 * 4 * 3
    assert (logits(packed) - before).norm() < 0.03 * before.norm()
    size = sum(t.nbytes for t in packed.state_dict(keep_vars=True).values())
    assert size < sum(t.nbytes for t in model.state_dict().values()) / 3


@pytest.mark.parametrize("build", BUILDS)
def test_from_folder_to_artifact_and_streamed(tmp_path: Path, build: Build) -> None:
    model = build()
    model.save_pretrained(tmp_path / "in")
    options = {"technique": tauten.GPTQ(4, 32), "data": [{"input_ids": TOKENS}]}
    written = tauten.quantize(tmp_path / "in", out=tmp_path / "out", **options)
    expected = logits(written)
    assert torch.equal(logits(tauten.load(tmp_path / "out")), expected)
    assert torch.equal(logits(tauten.quantize(model, **options)), expected)
    source = open_source(tmp_path / "out")
    blocks = find_structure(source.skeleton()).blocks
    assert blocks == ("model.layers.0", "model.layers.1")
    assert torch.equal(logits(source.open(blocks, stream=True)), expected)


@pytest.mark.parametrize("build", BUILDS[1:])
def test_checkpoints_of_experts_are_read_a_block_at_a_time(tmp_path: Path, build: Build) -> None:
    build().save_pretrained(tmp_path / "in")
    source = open_source(tmp_path / "in")
    assert source.reader is not None and not source.whole


def walked(model: nn.Module, tokens: torch.Tensor) -> dict[str, LayerRecord]:
    skeleton = shared_copy(model)
    calibration = Calibration([CalibrationBatch((tokens,), {"use_cache": False})])
    recipe = Recipe.of(tauten.GPTQ(3, 32))
    walk = Walk(skeleton, find_structure(skeleton), recipe, calibration=calibration)
    walk.run()
    return {record.name: record for record in walk.layers}


def test_starved_experts_are_calibrated_on_all_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_qwen3_moe()
    with (
        torch.no_grad()
    ):  # all tokens to experts 0 and 1, of which 1 gets only some in second place
        for layer in model.model.layers:
            layer.mlp.gate.weight.zero_()
    monkeypatch.setattr(experts, "TOKENS_PER_FEATURE", 1)
    records = walked(model, TOKENS)
    reached = {
        number: "reached this expert"
        not in records[f"model.layers.1.mlp.experts.{number}.{leaf}"].reason
        for number in range(4)
        for leaf in ("gate_proj", "down_proj")
    }
    assert sorted(reached.values()) == [False, False, True, True]
    starved = next(number for number, fed in reached.items() if not fed)
    reason = records[f"model.layers.1.mlp.experts.{starved}.up_proj"].reason
    assert "only 0 tokens reached this expert" in reason and "all 96" in reason


def test_moments_are_of_the_tokens_routed() -> None:
    """An expert's moment is that of the tokens that the router sends it."""
    model = shared_copy(tiny_qwen3_moe())
    experts_of, given = model.model.layers[0].mlp.experts, {}
    hook = experts_of.register_forward_pre_hook(lambda _, args: given.update(args=args))
    logits(model)
    hook.remove()
    hidden, index, _ = given["args"]
    calibration = Calibration(
        [CalibrationBatch((TOKENS,), {"use_cache": False})], dtype=torch.float32
    )
    structure = find_structure(model)
    walk = Walk(model, structure, Recipe.of(tauten.GPTQ(4, 32)), calibration=calibration)
    names = [f"model.layers.0.mlp.experts.{number}.gate_proj" for number in range(4)]
    calibration.start(model, structure.blocks, walk._tensors.filled, names)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experts, "TOKENS_PER_FEATURE", 0)
        seen = calibration.observe("model.layers.0", names)
    for number, name in enumerate(names):
        rows = hidden[(index == number).any(1)]
        assert seen[name].tokens == len(rows)
        assert torch.allclose(seen[name].moment, rows.T @ rows / len(rows), atol=1e-5)


def test_experts_with_a_gate_of_their_own_stay_as_they_are() -> None:
    own = {"intermediate_size": 96, "num_local_experts": 4, "head_dim": 16}
    config = transformers.GptOssConfig(**SIZES, **own)
    model = unfuse_experts(transformers.GptOssForCausalLM(config))
    assert not any(isinstance(module, Experts) for module in model.modules())
    structure = find_structure(model)
    walk = Walk(model, structure, Recipe.of(tauten.RTN(4, 32)))
    walk.run()
    (record,) = (r for r in walk.layers if r.name == "model.layers.1.mlp.experts.down_proj")
    assert record.reason.startswith("kept: no layer") and record.size_bytes == 4 * 96 * 64 * 4


@pytest.mark.parametrize("build", BUILDS)
@pytest.mark.parametrize(
    "technique",
    [tauten.AWQ(4, 32), tauten.SmoothQuant(), tauten.GPTQ(4, 32, correction=0.5)],
    ids=lambda technique: technique.name,
)
def test_techniques_that_run_blocks_anew_bear_other_routes(
    build: Build, technique: tauten.core.technique.Technique
) -> None:
    """Scaled or packed, a block may send tokens to other experts than the original does."""
    model, data = build(), list(torch.randint(0, 256, (24, 64)).split(4))
    packed = tauten.quantize(model, technique=technique, data=data)
    names = [name for name, _ in packed_modules(packed)]
    assert any(".experts." in name for name in names)
    change = (logits(packed) - logits(model)).norm() / logits(model).norm()
    assert change < 0.5


def test_experts_have_no_shift_and_other_layers_have() -> None:
    model = shared_copy(tiny_mixtral())
    batch = CalibrationBatch((TOKENS,), {"use_cache": False})
    calibration, structure = Calibration([batch], correct=True), find_structure(model)
    walk = Walk(model, structure, Recipe.of(tauten.GPTQ(4, 32)), calibration=calibration)
    names = sorted(experts.routed_layers(model.model.layers[0], "model.layers.0"))
    names.append("model.layers.0.self_attn.o_proj")
    calibration.start(model, structure.blocks, walk._tensors.filled, names)
    seen = calibration.observe("model.layers.0", names)
    assert len(names) == 1 + 4 * 3
    assert {name for name in names if seen[name].shift is not None} == {names[-1]}
