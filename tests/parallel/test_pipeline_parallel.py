"""Blocks dealt out to stages: bit-equal to the model on the same micro-batches."""

import itertools
from typing import Any

import pytest
import torch
from parallel_layouts import by_parts, laid_out, main, without_cache
from tiny_models import MODELS, tiny_llama
from torch import nn

import tauten
from tauten.core.errors import InputError
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
    assert chain.last == ("model.norm", "lm_head") and not chain.returns_tuple
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
