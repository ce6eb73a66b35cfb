"""PruneWidth on transformers of Hugging Face and torch."""

import pytest
import torch
from pruned_models import change, output, pruned
from tiny_models import MODELS, tiny_bert, tiny_llama
from torch import Tensor, nn

from tauten import InputError, NotApplicableError, PruneWidth


def tokens(seed: int, rows: int = 8) -> Tensor:
    return torch.randint(0, 256, (rows, 24), generator=torch.manual_seed(seed))


def readers(model: nn.Module) -> list[nn.Linear]:
    """The layers that read the features."""
    named = dict(model.named_modules())
    found = [m for n, m in named.items() if n.endswith("down_proj")]
    return found or [m for n, m in named.items() if n.endswith("output.dense") and "att" not in n]


@pytest.mark.parametrize("kind", ["llama", "bert", "gpt2", "attention"])
def test_narrow_and_still_runs(kind: str) -> None:
    model, example = (make() for make in MODELS[kind])
    made = pruned(model, PruneWidth(0.5, 16), example)
    assert output(made, example).shape == output(model, example).shape
    assert sum(p.numel() for p in made.parameters()) < sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("build", [tiny_llama, tiny_bert])
@pytest.mark.parametrize("data", [(), (tokens(1),)], ids=["no data", "data"])
def test_features_that_nothing_reads_go_without_a_trace(build, data) -> None:
    model = build()
    for layer in readers(model):
        layer.weight.data[:, ::3] = 0  # 32 of 96
    made = pruned(model, PruneWidth(1 / 3, 1), *data)
    assert change(model, made, tokens(2)) < 1e-2
    assert [layer.in_features for layer in readers(made)] == [64] * 3
    assert made.config.intermediate_size == 64
    assert model.config.intermediate_size == 96


@pytest.mark.parametrize("build", [tiny_llama, tiny_bert])
def test_of_double_features_one_stays_and_takes_over(build) -> None:
    model = build()
    for name, parameter in model.named_parameters():
        if any(part in name for part in ("gate_proj", "up_proj", "intermediate.dense")):
            parameter.data[1::2] = parameter.data[::2]
    made = pruned(model, PruneWidth(0.5, 1, 1e-4), *(tokens(seed) for seed in range(4)))
    blind = pruned(model, PruneWidth(0.5, 1))
    assert change(model, made, tokens(9)) < 0.2 * change(model, blind, tokens(9))


def test_data_beats_weights_alone() -> None:
    model = tiny_llama()
    blind, fitted = (pruned(model, PruneWidth(0.5, 1), *d) for d in ((), (tokens(1, 32),)))
    assert change(model, fitted, tokens(2)) < 0.97 * change(model, blind, tokens(2))


def test_bfloat16_stays_bfloat16() -> None:
    made = pruned(tiny_llama().bfloat16(), PruneWidth(0.5, 16), tokens(1))
    assert {p.dtype for p in made.parameters()} == {torch.bfloat16}


def test_refusals() -> None:
    with pytest.raises(NotApplicableError, match="none known by name"):
        pruned(nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 4)), PruneWidth())
    with pytest.raises(NotApplicableError, match=r"widths \[96\].*multiple=128"):
        pruned(tiny_llama(), PruneWidth(0.5, 128))
    with pytest.raises(InputError, match=r"prune_width: fraction=1\.5"):
        PruneWidth(1.5)
