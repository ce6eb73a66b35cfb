"""Blocks dealt out to stages: bit-equal to the model on the same micro-batches."""

import itertools
from typing import Any

import pytest
import torch
import transformers
from parallel_layouts import by_parts, laid_out, main, without_cache
from tiny_models import MODELS, tiny_llama
from torch import nn

import tauten
from tauten.core.errors import InputError
from tauten.parallel.comparison import difference
from tauten.parallel.pipeline_parallel import ChainShape, Stage, balance, even_microbatches
from tauten.parallel.plan import Layout
from tauten.parallel.profile import measure
from tauten.parallel.tensor_parallel import tensor_plan

TOKENS = torch.arange(8 * 12).view(8, 12) * 5 % 256


@pytest.mark.parametrize(
    "name", ["llama", "llama_untied", "gpt2", "bert", "cnn", "mlp", "attention"]
)
def test_every_kind_of_model(name: str) -> None:
    build, example = MODELS[name]
    model, x = build(), example()
    with laid_out(model, Layout(pipeline=2), x) as parallel:
        assert torch.equal(main(parallel(x)), by_parts(model, x, [len(x)]))


def test_packed_models_and_every_shape_anew() -> None:
    for model in (tiny_llama(), tauten.quantize(tiny_llama(tied=False), 4)):
        layout = Layout(pipeline=2, microbatches=4)
        with laid_out(model, layout, input_ids=TOKENS) as parallel:
            for rows, length in ((8, 12), (8, 7), (6, 12), (1, 3), (8, 12), (7, 12)):
                x = TOKENS[:rows, :length]
                count = even_microbatches(rows, 4)
                expected = by_parts(model, x, [rows // count] * count)
                assert torch.equal(main(parallel(input_ids=x)), expected)


def test_stages_of_parts_of_layers_in_copies() -> None:
    model = tiny_llama(layers=4)
    layout = Layout(data=1, tensor=2, pipeline=2, microbatches=2)
    with torch.inference_mode():
        expected = main(without_cache(model)(TOKENS))
    with laid_out(model, layout, TOKENS) as parallel:
        assert torch.allclose(main(parallel(TOKENS)), expected, atol=1e-5)
        assert len(parallel.worker_pids) == 4
        with pytest.raises(InputError, match="forward alone"):
            parallel.generate(TOKENS[:1])


def test_a_stage_leaves_the_tensors_of_others_empty() -> None:
    model, x = tiny_llama(tied=False), TOKENS
    chain = chain_of(model, x)
    assert chain is not None and chain.first == (("model.embed_tokens", 64),)
    assert chain.last == ("model.norm", "lm_head") and chain.returned == 0
    for begin, end in ((0, 1), (1, 2), (2, 3)):
        unused = Stage.unused(chain, begin, end)
        held = [name for name in chain.blocks if name not in unused]
        assert held == [f"model.layers.{begin}"]
        assert ("lm_head" in unused) == (end < 3)
        assert ("model.embed_tokens" in unused) == (begin > 0)


class Skips(nn.Module):
    """The second block gets more than the first made."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(6, 6)) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.blocks[1](self.blocks[0](x) + x)


def test_blocks_that_are_no_chain_are_seen() -> None:
    assert chain_of(Skips(), torch.randn(2, 6)) is None


class Pyramid(nn.Module):
    """What its first stages make is used behind the last, got by hooks, as backbones do."""

    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.ModuleList(nn.Sequential(nn.Linear(6, 6)) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        made: list[torch.Tensor] = []
        hooks = [
            stage.register_forward_hook(lambda _, __, y: made.append(y)) for stage in self.stages
        ]
        for stage in self.stages:
            x = stage(x)
        for hook in hooks:
            hook.remove()
        return sum(made, torch.zeros(()))


def test_states_that_are_used_on_the_way_are_no_chain() -> None:
    assert chain_of(Pyramid(), torch.randn(2, 6)) is None


class Pairs(nn.Module):
    """Its blocks return the state and None, and it takes both."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(6, 6)

        def forward(self, x: torch.Tensor) -> Any:
            return self.linear(x), None

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(self.Block() for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x, _ = block(x)
        return x


SIZES = {"vocab_size": 256, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2}
HEADS = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "pad_token_id": 0}
FEATURES = {"encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "max_position_embeddings": 64}
TOWER = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
TOWER |= {"num_attention_heads": 2}


def bart() -> nn.Module:
    """Its tables make the encoder's states too; that of positions has a forward of its own."""
    config = transformers.BartConfig(**SIZES, **HEADS, **FEATURES, eos_token_id=2)
    return transformers.BartForConditionalGeneration(config)


def opt() -> nn.Module:
    """Its table of positions takes other arguments than `nn.Embedding`."""
    options = {"ffn_dim": 48, "word_embed_proj_dim": 32, "max_position_embeddings": 64}
    return transformers.OPTForCausalLM(transformers.OPTConfig(vocab_size=256, **TOWER, **options))


class Towers(nn.Module):
    """One has the blocks, the other the table; what both make is compared."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(256, 6)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(6, 6)) for _ in range(2))

    def forward(self, input_ids: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        words = self.table(input_ids).mean(1)
        for block in self.blocks:
            x = block(x)
        return words * x


CALLS: dict[str, tuple[Any, dict[str, Any]]] = {
    "bart": (bart, {"input_ids": TOKENS, "decoder_input_ids": TOKENS[:, :5]}),
    "opt": (opt, {"input_ids": TOKENS}),
    "towers": (Towers, {"input_ids": TOKENS[:3], "x": torch.randn(3, 6)}),
    "pairs": (Pairs, {"x": torch.randn(4, 6)}),
}


@pytest.mark.parametrize("name", CALLS)
def test_stages_have_all_that_other_parts_of_the_model_need(name: str) -> None:
    build, call = CALLS[name]
    torch.manual_seed(0)
    model = build().eval()
    with torch.inference_mode():
        expected = without_cache(model)(**call)
    profile, _ = measure(without_cache(model), ((), call), tensor_plan(model), [1])
    assert profile.chain is not None
    assert bool(profile.chain.first) == (name == "opt")
    state: Any = None
    for begin, end in ((0, 1), (1, len(profile.chain.blocks))):
        stage = Stage(without_cache(model), profile.chain, begin, end)
        with torch.inference_mode():
            state = stage.run(state, (), call)
    assert difference(state, expected) < 1e-5


def chain_of(model: nn.Module, x: Any) -> ChainShape | None:
    profile, _ = measure(without_cache(model), ((x,), {}), tensor_plan(model), [1])
    return profile.chain


def test_stages_are_balanced_as_well_as_can_be() -> None:
    costs = torch.rand(9, generator=torch.manual_seed(0)).tolist()
    for stages in (1, 2, 3, 4, 9):
        ends = balance(costs, stages)
        assert len(ends) == stages and ends[-1] == 9
        assert dearest(costs, ends) == pytest.approx(
            min(
                dearest(costs, (*cuts, 9))
                for cuts in itertools.combinations(range(1, 9), stages - 1)
            )
        )


def dearest(costs: list[float], ends: tuple[int, ...]) -> float:
    return max(sum(costs[a:b]) for a, b in itertools.pairwise((0, *ends)))


def test_micro_batches_deal_out_evenly() -> None:
    wanted = [even_microbatches(*pair) for pair in ((8, 4), (6, 4), (7, 4), (1, 4), (9, 3))]
    assert wanted == [4, 3, 1, 1, 3]
