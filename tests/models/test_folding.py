"""Where scale can be moved: found by trying, the same in all architectures."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tiny_models import tiny_bert, tiny_gpt2, tiny_llama
from torch import Tensor, nn

import tauten
from tauten.core.inputs import LayerInputs
from tauten.core.journal import Journal
from tauten.core.recipe import Recipe, Step
from tauten.core.technique import ScalingTechnique
from tauten.formats.integer import IntegerWeight
from tauten.models.calibration import Calibration, CalibrationBatch
from tauten.models.folding import Fold, find_folds
from tauten.models.source import fingerprint_tensors, shared_copy
from tauten.models.store import BlockStore
from tauten.models.structure import find_structure
from tauten.models.walk import Walk
from tauten.solvers.nearest import round_to_nearest

SIZES: dict[str, Any] = {
    "vocab_size": 256,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}


def tiny_qwen() -> nn.Module:
    return transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**SIZES))


def tiny_gemma() -> nn.Module:
    return transformers.GemmaForCausalLM(transformers.GemmaConfig(**SIZES, head_dim=16))


def tiny_opt() -> nn.Module:
    config = transformers.OPTConfig(
        vocab_size=256,
        hidden_size=64,
        ffn_dim=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
        word_embed_proj_dim=64,
    )
    return transformers.OPTForCausalLM(config)


def randomized(model: nn.Module) -> nn.Module:
    """Norms and biases as a trained model has them, not ones and zeros."""
    generator = torch.Generator().manual_seed(3)
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def batches(count: int = 2) -> list[CalibrationBatch]:
    """Tokens, some of them padding."""
    generator = torch.Generator().manual_seed(0)
    ids = [torch.randint(0, 256, (2, 12), generator=generator) for _ in range(count)]
    mask = torch.tensor([12, 9])[:, None] > torch.arange(12)
    return [CalibrationBatch((), {"input_ids": i, "use_cache": False}, mask) for i in ids]


def traced(model: nn.Module, index: int = 1) -> tuple[nn.Module, Any]:
    """A block of a model and what runs it on real input."""
    calibration, structure = Calibration(batches(), dtype=torch.float32), find_structure(model)
    walk = Walk(shared_copy(model), structure, Recipe(()), calibration=None)
    calibration.start(walk.model, structure.blocks, walk._tensors.filled, [])
    part = structure.blocks[index]
    return calibration.dense(part), functools.partial(calibration.try_block, part)


LLAMA = {
    ("input_layernorm", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
    ("self_attn.v_proj", ("self_attn.o_proj",)),
    ("post_attention_layernorm", ("mlp.gate_proj", "mlp.up_proj")),
    ("mlp.up_proj", ("mlp.down_proj",)),
}
EXPECTED: dict[str, tuple[Any, set[tuple[str, tuple[str, ...]]]]] = {
    "llama": (tiny_llama, LLAMA),
    "qwen": (tiny_qwen, LLAMA),
    "gemma": (tiny_gemma, LLAMA),
    # Value is a part of c_attn, and GELU isn't linear.
    "gpt2": (tiny_gpt2, {("ln_1", ("attn.c_attn",)), ("ln_2", ("mlp.c_fc",))}),
    # Its norms also feed the residual; values pass attention unmixed.
    "bert": (tiny_bert, {("attention.self.value", ("attention.output.dense",))}),
    "opt": (
        tiny_opt,
        {
            (
                "self_attn_layer_norm",
                ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
            ),
            ("self_attn.v_proj", ("self_attn.out_proj",)),
            ("final_layer_norm", ("fc1",)),
            ("fc1", ("fc2",)),  # ReLU passes positive scales on
        },
    ),
}


def named(folds: Sequence[Fold]) -> set[tuple[str, tuple[str, ...]]]:
    return {(fold.producer, tuple(sorted(fold.consumers))) for fold in folds}


@torch.no_grad()
@pytest.mark.parametrize("kind", EXPECTED)
def test_folds_are_found_and_change_nothing(kind: str) -> None:
    build, expected = EXPECTED[kind]
    block, run = traced(randomized(build()))
    before = {name: tensor.clone() for name, tensor in block.state_dict().items()}
    folds = find_folds(block, run)
    assert named(folds) == {(p, tuple(sorted(c))) for p, c in expected}
    assert all(torch.equal(tensor, before[name]) for name, tensor in block.state_dict().items())
    output = run(block)
    for fold in folds:
        width = int(fold.channels.max()) + 1
        fold.apply(block, torch.rand(width, generator=torch.Generator().manual_seed(1)) + 0.5)
    torch.testing.assert_close(run(block), output, rtol=1e-4, atol=1e-4)
    changed = {n for n, tensor in block.state_dict().items() if not torch.equal(tensor, before[n])}
    assert len(changed) >= len(folds) * 2


@torch.no_grad()
def test_grouped_queries_share_the_channels_of_their_values() -> None:
    block, run = traced(tiny_llama())  # 4 heads of 16, 2 of values
    fold = next(f for f in find_folds(block, run) if f.producer == "self_attn.v_proj")
    expected = torch.arange(32).view(2, 1, 16).expand(2, 2, 16).flatten()
    assert torch.equal(fold.channels, expected)


@torch.no_grad()
def test_a_norm_that_adds_one_to_its_weight_is_told_apart() -> None:
    block, run = traced(randomized(tiny_gemma()))
    offsets = {f.producer: f.offset for f in find_folds(block, run)}
    assert offsets["input_layernorm"] == offsets["post_attention_layernorm"] == 1.0


@dataclass(frozen=True)
class Wild(ScalingTechnique):
    """Random scales, 8 bits, and a note of what `encode` was told."""

    name = "wild"
    pillar = "quantize"

    def scale(self, weights: Sequence[Tensor], inputs: LayerInputs, channels: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(len(weights))
        return (torch.rand(int(channels.max()) + 1, generator=generator) + 0.5)[channels]

    def encode(self, weight: Tensor, inputs: LayerInputs | None = None) -> IntegerWeight:
        SEEN.append(inputs)
        return round_to_nearest(weight, 8, 0, "none", "minmax")


SEEN: list[LayerInputs | None] = []


def packed_by(technique: Any, model: nn.Module, **options: Any) -> Walk:
    calibration = Calibration(batches(), dtype=torch.float32)
    recipe = Recipe((Step(technique, "*layers*"),))
    walk = Walk(model, find_structure(model), recipe, calibration=calibration, **options)
    walk.run()
    return walk


def test_inputs_are_those_that_a_second_look_would_see() -> None:
    model = randomized(tiny_llama())
    before = fingerprint_tensors(model.state_dict())
    SEEN.clear()
    walk = packed_by(Wild(), shared_copy(model))
    told = dict(zip((record.name for record in walk.layers if record.error), SEEN, strict=True))
    assert fingerprint_tensors(model.state_dict()) == before
    rows: dict[str, list[Tensor]] = {name: [] for name in told}
    for name, found in rows.items():
        walk.model.get_submodule(name).register_forward_pre_hook(
            lambda _, args, found=found: found.append(args[0])
        )
    calls = batches()
    with torch.no_grad():
        logits = walk.model(**calls[0].kwargs).logits
        expected = model(**calls[0].kwargs).logits
        walk.model(**calls[1].kwargs)
    assert (logits - expected).norm() < 0.02 * expected.norm()
    for name, inputs in told.items():
        assert inputs is not None and inputs.peak is not None and inputs.sample is not None
        x = torch.cat([r[call.mask] for r, call in zip(rows[name], calls, strict=True)])
        moment = x.t() @ x / len(x)
        assert (inputs.moment - moment).norm() < 0.02 * moment.norm(), name
        peak = x.abs().amax(0)
        assert (inputs.peak - peak).norm() < 0.02 * peak.norm(), name
        assert (inputs.sample - x).norm() < 0.02 * x.norm(), name
    reasons = {record.name: record.reason for record in walk.layers}
    assert "scaled against mlp.up_proj" in reasons["model.layers.0.mlp.down_proj"]


def test_only_what_a_technique_packs_is_scaled() -> None:
    model = tiny_llama()
    calibration = Calibration(batches(), dtype=torch.float32)
    recipe = Recipe((Step(tauten.AWQ(4, 16), "*.q_proj"),))
    walk = Walk(shared_copy(model), find_structure(model), recipe, calibration=calibration)
    walk.run()
    norm = walk.model.get_parameter("model.layers.0.input_layernorm.weight")
    assert torch.equal(norm, model.get_parameter("model.layers.0.input_layernorm.weight"))


class Killed(Exception):
    """Ends a walk."""


class Mortal(Calibration):
    """Dies behind the second block."""

    def advance(self, part: str) -> None:
        super().advance(part)
        if part.endswith("2"):
            raise Killed


def test_a_killed_walk_goes_on_with_the_same_bytes(tmp_path: Path) -> None:
    model, recipe = randomized(tiny_llama()), Recipe.of(tauten.AWQ(4, 16))

    def walk(folder: str, kind: type[Calibration]) -> None:
        calibration = kind(batches(), dtype=torch.float32)
        store = BlockStore(tmp_path / folder, Journal(tmp_path / f"{folder}.jsonl", {}), "trial")
        copy = shared_copy(model)
        Walk(copy, find_structure(model), recipe, store=store, calibration=calibration).run()

    walk("whole", Calibration)
    with pytest.raises(Killed):
        walk("killed", Mortal)
    walk("killed", Calibration)
    for file in sorted((tmp_path / "whole").iterdir()):
        assert file.read_bytes() == (tmp_path / "killed" / file.name).read_bytes(), file.name


@pytest.mark.parametrize("technique", [tauten.AWQ(3, 16), tauten.SmoothQuant()])
def test_scaled_norms_are_saved_and_streamed(tmp_path: Path, technique: Any) -> None:
    model = randomized(tiny_llama(tied=False))
    model.save_pretrained(tmp_path / "model")
    data = [batch.kwargs["input_ids"] for batch in batches()]
    from_disk = tauten.quantize(
        tmp_path / "model", technique=technique, data=data, out=tmp_path / "out"
    )
    in_memory = tauten.quantize(model, technique=technique, data=data).state_dict()
    loaded = tauten.load(tmp_path / "out").state_dict()
    for name, tensor in from_disk.state_dict().items():
        assert torch.equal(tensor, in_memory[name]) and torch.equal(tensor, loaded[name]), name
    norm = "model.layers.0.input_layernorm.weight"
    assert not torch.equal(loaded[norm], model.state_dict()[norm])
