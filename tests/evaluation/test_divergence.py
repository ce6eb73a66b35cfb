"""KL to the original, against scipy in float64."""

import pytest
import torch
from scipy.special import rel_entr
from tiny_models import byte_tokenizer, tiny_llama
from torch import nn

from tauten.data.documents import Document
from tauten.data.windows import TokenBatch, token_batches
from tauten.evaluation.divergence import Divergence, batches_within


@pytest.fixture(scope="module")
def batches() -> list[TokenBatch]:
    texts = [f"{i} is a number. " * (i + 1) for i in range(1, 6)]
    documents = [Document(str(i), text) for i, text in enumerate(texts)]
    return token_batches(documents, byte_tokenizer(), batch_tokens=150)


def moved(model: nn.Module, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    other = tiny_llama()
    other.load_state_dict(model.state_dict())
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    return other


def test_it_is_the_sum_over_the_vocabulary_at_each_real_token(batches: list[TokenBatch]) -> None:
    original, candidate = tiny_llama(), moved(tiny_llama(), 1)
    expected = []
    for batch in batches:
        for ids, length in zip(batch.ids, batch.lengths.tolist(), strict=True):
            with torch.no_grad():
                p, q = (
                    m(input_ids=ids[None, :length]).logits[0, :-1].double().softmax(-1)
                    for m in (original, candidate)
                )
            expected += rel_entr(p.numpy(), q.numpy()).sum(1).tolist()
    found = Divergence(original, batches).of(candidate)
    assert found.tolist() == pytest.approx(expected, rel=1e-3, abs=1e-7)
    assert found.min() > -1e-6 and found.mean() > 1e-4


def test_it_is_zero_to_itself_and_not_symmetric(batches: list[TokenBatch]) -> None:
    original, candidate = tiny_llama(), moved(tiny_llama(), 1)
    assert Divergence(original, batches).of(original).abs().max() < 1e-6
    there = Divergence(original, batches).of(candidate)
    back = Divergence(candidate, batches).of(original)
    assert (there - back).abs().max() > 1e-5


def test_batches_within_a_budget(batches: list[TokenBatch]) -> None:
    sizes = [batch.ids.numel() * 256 * 4 for batch in batches]
    assert len(sizes) >= 3
    for count in range(1, len(sizes) + 1):
        assert len(batches_within(batches, 256, sum(sizes[:count]))) == count
        assert len(batches_within(batches, 256, sum(sizes[:count]) - 1)) == max(1, count - 1)
    assert batches_within(batches, 256, 1) == batches[:1]
