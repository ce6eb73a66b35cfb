"""Depth pruning: the blocks that go are those whose loss, measured by brute force, is least."""

import copy
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tiny_models import MODELS, tiny_bert, tiny_llama, tiny_mlp
from torch import nn

import tauten
from tauten.compression.prune_depth import keep_blocks
from tauten.core.errors import InputError, NotApplicableError
from tauten.data.tensors import main_output
from tauten.models.calibration import CalibrationBatch
from tauten.models.source import shared_copy
from tauten.models.structure import find_structure
from tauten.solvers.distillation import output_loss


def opinionated_llama(layers: int = 5) -> Any:
    """Of predictions that are far from uniform, and blocks that matter differently."""
    model: Any = tiny_llama(tied=False, layers=layers)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4 if parameter.dim() == 2 else 1)
        for index, layer in enumerate(model.model.layers):
            layer.mlp.down_proj.weight.mul_(1 + index % 3)
    return model


def tokens(seed: int = 0) -> list[CalibrationBatch]:
    ids = torch.randint(0, 256, (4, 24), generator=torch.Generator().manual_seed(seed))
    real = torch.arange(24) < torch.tensor([24, 24, 24, 12])[:, None]
    return [CalibrationBatch((), {"input_ids": ids, "use_cache": False}, real)]


def without(model: Any, removed: tuple[int, ...]) -> Any:
    model = copy.deepcopy(model)
    names = find_structure(model).blocks
    keep_blocks(model, names, [i for i in range(len(names)) if i not in removed])
    return model


def loss(model: nn.Module, original: nn.Module, batch: CalibrationBatch) -> float:
    with torch.no_grad():
        pair = [m(*batch.args, **batch.kwargs) for m in (model, original)]
        return float(output_loss(*pair, batch.mask))


def pruned(model: nn.Module, batches: Any, **knobs: Any) -> Any:
    model = shared_copy(model)
    tauten.PruneDepth(**knobs).reshape(model, batches)
    return model


@pytest.mark.parametrize("build", [opinionated_llama, tiny_bert], ids=["llama", "bert"])
def test_removes_what_brute_force_removes(build: Any) -> None:
    original, (batch,) = build(), tokens()
    if build is tiny_bert:
        batch = CalibrationBatch((batch.kwargs["input_ids"],), {})
    count = len(find_structure(original).blocks)
    removed: tuple[int, ...] = ()
    for _ in range(2):
        trials = [tuple({*removed, i}) for i in range(count) if i not in removed]
        removed = min(trials, key=lambda gone: loss(without(original, gone), original, batch))
    found = pruned(original, [batch], count=2, candidates=count)
    expected = without(original, removed)
    assert len(find_structure(expected).blocks or [0]) == max(1, count - 2)
    with torch.no_grad():
        outputs = [main_output(m(*batch.args, **batch.kwargs)) for m in (found, expected)]
    assert torch.equal(*outputs)


def test_measuring_beats_the_angle_alone() -> None:
    """A block turns the state least, but writes just what the head listens to."""
    original, batches = opinionated_llama(), tokens()
    listened = original.model.layers[2]
    with torch.no_grad():
        original.model.norm.weight[0] = 50
        original.model.embed_tokens.weight[:, 0] = 0
        for layer in original.model.layers:
            rows = slice(1, None) if layer is listened else slice(1)
            for linear in (layer.self_attn.o_proj, layer.mlp.down_proj):
                linear.weight[rows] = 0
    measured = pruned(original, batches, count=1, candidates=5)
    by_angle = pruned(original, batches, count=1, candidates=1)
    assert loss(measured, original, batches[0]) < 0.5 * loss(by_angle, original, batches[0])


def test_a_block_that_does_nothing_goes_first() -> None:
    original: Any = opinionated_llama()
    idle = original.model.layers[3]
    with torch.no_grad():
        idle.self_attn.o_proj.weight.zero_()
        idle.mlp.down_proj.weight.zero_()
    found = pruned(original, tokens(), fraction=0.2)
    assert len(found.model.layers) == 4
    assert loss(found, original, tokens(1)[0]) < 1e-6


def test_a_convolutional_network_loses_blocks_by_output_error() -> None:
    build, example = MODELS["cnn"]
    original, batch = build(), CalibrationBatch((example(),), {})
    errors = {i: loss(without(original, (i,)), original, batch) for i in range(3)}
    found: Any = pruned(original, [batch], count=1)
    assert len(found[1]) == 2
    assert loss(found, original, batch) == pytest.approx(min(errors.values()), rel=1e-4)


def test_caches_and_layer_types_follow_the_layers_that_stay(tmp_path: Path) -> None:
    config = transformers.Qwen3Config(
        vocab_size=256, hidden_size=32, intermediate_size=48, num_hidden_layers=4,
        num_attention_heads=2, num_key_value_heads=1, head_dim=16, max_position_embeddings=64,
        use_sliding_window=True, sliding_window=8, max_window_layers=2,
    )  # fmt: skip
    torch.manual_seed(0)
    model: Any = transformers.Qwen3ForCausalLM(config).eval()
    kinds = list(model.config.layer_types)
    model.save_pretrained(tmp_path / "in")
    ids = torch.arange(1, 25).view(1, 24)
    out = tmp_path / "out"
    tauten.compress(
        tmp_path / "in", technique=tauten.PruneDepth(count=1), data=[{"input_ids": ids}], out=out
    )
    plain: Any = transformers.AutoModelForCausalLM.from_pretrained(out)
    left = [[k for i, k in enumerate(kinds) if i != gone] for gone in range(4)]
    assert plain.config.layer_types in left
    assert [layer.self_attn.layer_idx for layer in plain.model.layers] == [0, 1, 2]
    options = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    cached = plain.generate(ids, **options)
    assert torch.equal(cached, plain.generate(ids, use_cache=False, **options))
    assert torch.equal(cached, tauten.load(out).generate(ids, **options))  # type: ignore[operator]


@pytest.mark.parametrize("kind", ["gpt2", "bert"])
def test_pruned_folders_load_with_transformers_alone(tmp_path: Path, kind: str) -> None:
    build, example = MODELS[kind]
    build().save_pretrained(tmp_path / "in")
    given: dict[str, Any] = {"technique": tauten.PruneDepth(count=1), "data": [example()]}
    written = tauten.compress(tmp_path / "in", **given, out=tmp_path / "out")
    plain = type(build()).from_pretrained(tmp_path / "out")  # type: ignore[attr-defined]
    assert plain.config.num_hidden_layers == 2
    with torch.no_grad():
        assert torch.equal(main_output(plain(example())), main_output(written(example())))


@pytest.mark.parametrize(
    "knobs",
    [{"fraction": 0.0}, {"fraction": 1.0}, {"count": -1}, {"candidates": 0}, {"batches": 0}],
)
def test_knobs_out_of_range_are_named(knobs: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=f"prune_depth: {next(iter(knobs))}="):
        tauten.PruneDepth(**knobs)


def test_what_cannot_be_pruned_is_refused() -> None:
    llama, data = tiny_llama(), tokens()
    with pytest.raises(InputError, match="3 of 3 blocks would leave none"):
        pruned(llama, data, count=3)
    with pytest.raises(NotApplicableError, match=r"fraction=0\.1 of 3 blocks is less than one"):
        pruned(llama, data, fraction=0.1)
    with pytest.raises(InputError, match="pass data="):
        pruned(llama, [])
    with pytest.raises(NotApplicableError, match="Sequential has no repeated blocks"):
        pruned(tiny_mlp(), [CalibrationBatch((torch.ones(2, 10),), {})])


class TwoStates(nn.Module):
    """Blocks that hand two tensors on."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList(nn.Bilinear(4, 4, 4) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        before = x
        for block in self.blocks:
            before, x = x, block(x, before)
        return x


def test_blocks_that_hand_on_two_states_are_refused() -> None:
    with pytest.raises(NotApplicableError, match="more than one hidden state"):
        pruned(TwoStates(), [CalibrationBatch((torch.ones(2, 4),), {})], count=1)


def test_every_pair_of_knobs_gives_the_same_result_twice() -> None:
    original, data = opinionated_llama(4), tokens()
    for count, candidates in itertools.product((1, 2), (1, 3)):
        runs = [pruned(original, data, count=count, candidates=candidates) for _ in range(2)]
        assert loss(runs[0], original, data[0]) == loss(runs[1], original, data[0])
