"""Metrics of real modules, against loops written by hand in float64."""

import math
from typing import Any

import pytest
import torch
import transformers
from tiny_models import byte_tokenizer, tiny_bert
from torch import nn

from tauten.core.errors import InputError, TautenError
from tauten.data.documents import Document
from tauten.data.windows import TokenBatch, token_batches
from tauten.evaluation.metrics import Perplexity
from tauten.evaluation.tensor_metrics import Accuracy, Similarity
from tauten.evaluation.user_metric import Metric


@pytest.fixture(scope="module")
def llama() -> nn.Module:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=256,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.3,  # predictions that differ from token to token
    )
    return transformers.LlamaForCausalLM(config).eval()


def documents() -> list[Document]:
    return [Document(str(i), f"{i} is a number. " * (i + 1)) for i in range(1, 6)]


def losses_by_hand(model: nn.Module, text: str, window: int) -> list[float]:
    """Negative log-likelihood of each token of a document but the first of each window."""
    ids, losses = byte_tokenizer()(text)["input_ids"], []
    for start in range(0, len(ids), window):
        piece = ids[start : start + window]
        if len(piece) < 16:
            continue
        with torch.no_grad():
            rows = model(input_ids=torch.tensor([piece])).logits[0].double().tolist()
        for row, token in zip(rows, piece[1:], strict=False):
            losses.append(math.log(sum(map(math.exp, row))) - row[token])
    return losses


@pytest.mark.parametrize("window", [32, 512])
@pytest.mark.parametrize("batch_tokens", [1, 1024])  # no padding, and much of it
def test_perplexity_is_that_of_a_loop_whatever_the_padding(
    llama: nn.Module, window: int, batch_tokens: int
) -> None:
    batches = token_batches(documents(), byte_tokenizer(), window, batch_tokens=batch_tokens)
    metric = Perplexity()
    scores = metric.scores(llama, batches)
    by_hand = [losses_by_hand(llama, document.text, window) for document in documents()]
    assert scores.weight.tolist() == [len(losses) for losses in by_hand]
    assert scores.total.tolist() == pytest.approx([sum(x) for x in by_hand], rel=1e-5)
    every = [loss for losses in by_hand for loss in losses]
    assert metric.value(scores) == pytest.approx(math.exp(sum(every) / len(every)), rel=1e-5)


def test_what_stands_in_the_padding_does_not_matter(llama: nn.Module) -> None:
    (batch,) = token_batches(documents(), byte_tokenizer(), batch_tokens=10**6)
    padding = torch.arange(batch.ids.shape[1]) >= batch.lengths[:, None]
    assert padding.any()
    other = TokenBatch(batch.ids.masked_fill(padding, 77), batch.lengths, batch.documents)
    scores, others = (Perplexity().scores(llama, [b]) for b in (batch, other))
    assert torch.equal(scores.total, others.total)


def test_a_document_without_a_window_is_no_example(llama: nn.Module) -> None:
    some = [*documents(), Document("short", "tiny"), Document("last", "the last one is long")]
    scores = Perplexity().scores(llama, token_batches(some, byte_tokenizer()))
    assert scores.total.numel() == 6


def test_uniform_predictions_have_the_vocabulary_as_perplexity(llama: nn.Module) -> None:
    class Uniform(nn.Module):
        def forward(self, input_ids: torch.Tensor, use_cache: bool) -> Any:
            return transformers.modeling_outputs.CausalLMOutput(
                logits=torch.zeros(*input_ids.shape, 256)
            )

    batches = token_batches(documents(), byte_tokenizer())
    metric = Perplexity()
    uniform, trained = metric.scores(Uniform(), batches), metric.scores(llama, batches)
    assert metric.value(uniform) == pytest.approx(256, rel=1e-6)
    expected = metric.value(uniform) / metric.value(trained) - 1
    assert metric.drop(trained, uniform).value == pytest.approx(expected, rel=1e-6)
    assert metric.drop(trained, uniform).examples == 5


def classifier(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 3)).eval().requires_grad_(False)


def labelled(count: int = 30) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(count, 4, generator=generator)
    targets = torch.randint(0, 3, (count,), generator=generator)
    return list(zip(inputs.split(7), targets.split(7), strict=True))


def test_accuracy_counts_right_answers() -> None:
    model, right = classifier(0), []
    for inputs, targets in labelled():
        for row, target in zip(model(inputs).tolist(), targets.tolist(), strict=True):
            right.append(float(row.index(max(row)) == target))
    metric = Accuracy()
    scores = metric.scores(model, labelled())
    assert scores.total.tolist() == right
    assert metric.value(scores) == pytest.approx(sum(right) / 30)


def test_drop_of_accuracy_is_relative() -> None:
    metric = Accuracy()
    first, second = (metric.scores(classifier(seed), labelled()) for seed in (0, 1))
    expected = 1 - float(second.total.sum() / first.total.sum())
    assert metric.drop(first, second).value == pytest.approx(expected)


def test_similarity_is_the_cosine_to_the_original() -> None:
    original, candidate = (classifier(seed) for seed in (0, 1))
    metric = Similarity()
    metric.prepare(original, labelled())
    assert metric.value(metric.scores(original, labelled())) == pytest.approx(1, abs=1e-6)
    cosines = []
    for inputs, _ in labelled():
        for a, b in zip(original(inputs).double(), candidate(inputs).double(), strict=True):
            cosines.append(float(a @ b / a.norm() / b.norm()))
    assert metric.scores(candidate, labelled()).total.tolist() == pytest.approx(cosines, abs=1e-5)


def test_similarity_of_an_encoder_ignores_padding() -> None:
    model, ids = tiny_bert(), torch.arange(20).view(2, 10)
    short = {"input_ids": ids[:, :6], "attention_mask": torch.ones(2, 6, dtype=torch.int64)}
    mask = (torch.arange(10) < 6).long().expand(2, 10)
    metric = Similarity()
    metric.prepare(model, [short])
    scores = metric.scores(model, [{"input_ids": ids, "attention_mask": mask}])
    assert scores.total.tolist() == pytest.approx([1, 1], abs=1e-5)


def test_a_users_function_may_score_a_batch_or_each_example() -> None:
    def mean_output(model: nn.Module, batch: Any) -> float:
        return float(model(batch[0]).mean())

    def outputs(model: nn.Module, batch: Any) -> torch.Tensor:
        return model(batch[0])[:, 0]

    model = classifier(0)
    by_batch = Metric(mean_output).scores(model, labelled())
    assert by_batch.total.tolist() == pytest.approx(
        [float(model(inputs).mean()) for inputs, _ in labelled()]
    )
    by_example = Metric(outputs).scores(model, labelled())
    assert by_example.weight.tolist() == [1] * 30
    assert Metric(outputs).name == "outputs"


def test_a_users_function_says_its_direction() -> None:
    def loss(model: nn.Module, batch: Any) -> float:
        return float(nn.functional.cross_entropy(model(batch[0]), batch[1]))

    loss.higher_is_better = False  # type: ignore[attr-defined]
    metric = Metric(loss)
    first, second = (metric.scores(classifier(seed), labelled()) for seed in (0, 1))
    rise = float(second.total.sum() / first.total.sum()) - 1
    assert metric.drop(first, second).value == pytest.approx(rise)


@pytest.mark.parametrize("function", [lambda: 1, lambda model: 1, lambda a, b, c: 1, 5])
def test_a_function_that_cannot_take_model_and_batch_is_refused(function: Any) -> None:
    with pytest.raises(InputError, match=r"can't take \(model, batch\)"):
        Metric(function)


def test_a_function_may_have_further_defaults() -> None:
    metric = Metric(lambda model, batch, power=2: 3.0**power)
    assert metric.value(metric.scores(classifier(0), labelled())) == 9


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_metric_that_is_no_number_is_refused(value: float) -> None:
    with pytest.raises(TautenError, match="NaN or infinity"):
        Metric(lambda model, batch: value).scores(classifier(0), labelled())
