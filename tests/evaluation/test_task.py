"""Data and model decide the metric; splits are by document and share nothing."""

from typing import Any

import numpy as np
import pytest
import torch
import transformers
from tiny_models import byte_tokenizer, tiny_bert, tiny_llama, tiny_mlp
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from tauten.core.errors import InputError
from tauten.data.windows import TokenBatch
from tauten.evaluation.metrics import Perplexity
from tauten.evaluation.targets import group_ids
from tauten.evaluation.task import Task, is_language_model, make_task
from tauten.evaluation.tensor_metrics import Accuracy, Similarity
from tauten.evaluation.user_metric import Metric
from tauten.models.source import Source

# One character a document, so that a token tells where it came from.
TEXTS = [chr(ord("A") + i) * (40 + i) for i in range(30)]


def source_of(model: nn.Module, tokenizer: Any = byte_tokenizer) -> Source:
    return Source("model", "module", lambda: model, "f", 1, tokenizer=tokenizer)


def task_of(model: nn.Module, data: Any, metric: Any = None, **options: Any) -> Task:
    return make_task(source_of(model), model, data, metric, **options)


def padding_tokenizer() -> Any:
    tokenizer = byte_tokenizer()
    tokenizer.pad_token = "!"
    return tokenizer


def letters_of(batches: tuple[TokenBatch, ...]) -> set[str]:
    rows = [(ids, n) for b in batches for ids, n in zip(b.ids, b.lengths.tolist(), strict=True)]
    return set("".join(byte_tokenizer().decode(ids[:n]) for ids, n in rows))


def test_text_for_a_language_model_is_split_by_document() -> None:
    task = task_of(tiny_llama(), TEXTS)
    assert task.metric is Perplexity and task.is_text
    letters = {name: letters_of(batches) for name, batches in vars(task.splits).items()}
    assert {name: len(found) for name, found in letters.items()} == task.documents
    assert task.documents == {"calibration": 6, "development": 12, "test": 12}
    assert set.union(*letters.values()) == {text[0] for text in TEXTS}
    assert sum(task.tokens.values()) == sum(map(len, TEXTS))  # a token a byte, none twice
    assert task.facts()["tokens"] == task.tokens


def test_the_seed_deals_documents_out() -> None:
    tests = [letters_of(task_of(tiny_llama(), TEXTS, seed=s).splits.test) for s in (0, 0, 1)]
    assert tests[0] == tests[1] != tests[2]


def test_tokens_are_limited_in_every_split() -> None:
    task = task_of(tiny_llama(), TEXTS, max_tokens=150)
    assert all(80 < count <= 150 for count in task.tokens.values())


def test_windows_fit_the_model() -> None:
    model = tiny_llama()
    model.config.max_position_embeddings = 20
    batches = task_of(model, TEXTS).splits.test
    assert max(int(batch.lengths.max()) for batch in batches) == 20


def test_text_for_an_encoder_is_compared_with_the_original() -> None:
    model = tiny_bert()
    task = make_task(source_of(model, padding_tokenizer), model, TEXTS)
    assert task.metric is Similarity and not task.is_text
    metric, batches = task.metric(), task.splits.development
    metric.prepare(model, batches)
    scores = metric.scores(model, batches)
    assert scores.total.numel() == task.documents["development"] == 12


def test_labelled_rows_are_scored_by_accuracy() -> None:
    loader = DataLoader(TensorDataset(torch.randn(50, 10), torch.arange(50) % 10), batch_size=8)
    task = task_of(tiny_mlp(), loader)
    assert task.metric is Accuracy
    assert task_of(tiny_mlp(), loader, "similarity").metric is Similarity
    seen = [row for part in vars(task.splits).values() for b in part for row in b[0].tolist()]
    assert sorted(seen) == sorted(row for inputs, _ in loader for row in inputs.tolist())


@pytest.mark.parametrize("targets", [torch.zeros(50), torch.zeros(50, 2).long()])
def test_targets_that_no_metric_knows_are_refused(targets: torch.Tensor) -> None:
    data = [(torch.randn(50, 10), targets)]
    with pytest.raises(InputError, match=r"no metric compares outputs of shape \(20, 10\)"):
        task_of(tiny_mlp(), data)
    assert task_of(tiny_mlp(), data, "similarity").metric is Similarity


def test_weights_behind_targets_are_said_not_to_count(caplog: pytest.LogCaptureFixture) -> None:
    x, y = torch.randn(64, 10), torch.arange(64) % 10
    task = task_of(tiny_mlp(), [(x, y, torch.rand(64))])
    assert task.metric is Accuracy
    assert "the third part of each batch, such as weights of examples, isn't used" in caplog.text


def test_rows_without_targets_are_compared_with_the_original() -> None:
    task = task_of(tiny_mlp(), torch.randn(50, 10))
    assert task.metric is Similarity
    assert task.documents == {"calibration": 10, "development": 20, "test": 20}


def test_a_dictionary_is_one_batch() -> None:
    task = task_of(tiny_bert(), {"input_ids": torch.arange(100).view(20, 5)})
    assert task.documents == {"calibration": 4, "development": 8, "test": 8}
    assert task.splits.test[0]["input_ids"].shape == (8, 5)


def test_a_users_function_is_the_metric() -> None:
    task = task_of(tiny_mlp(), torch.randn(50, 10), lambda model, batch: model(batch).sum(1))
    metric = task.metric()
    assert metric.scores(tiny_mlp(), task.splits.test).total.numel() == 20


@pytest.mark.parametrize(
    ("model", "data", "metric", "expected"),
    [
        (tiny_llama, TEXTS, "accuracy", "perplexity"),
        (tiny_llama, TEXTS, "similarity", "perplexity"),
        (tiny_bert, TEXTS, "perplexity", "similarity"),
        (tiny_mlp, torch.arange(200.0).view(20, 10), "perplexity", "similarity"),
        (tiny_mlp, torch.arange(200.0).view(20, 10), "accuracy", "similarity"),
        (tiny_llama, TEXTS, "bleu", "perplexity"),
    ],
)
def test_a_metric_that_does_not_serve_is_refused(
    model: Any, data: Any, metric: str, expected: str
) -> None:
    with pytest.raises(InputError, match=f"'{metric}' doesn't serve.*expected {expected}"):
        task_of(model(), data, metric)


@pytest.mark.parametrize("data", [None, 5, [], iter(())])
def test_what_is_no_data_is_refused(data: Any) -> None:
    with pytest.raises(InputError, match="data is"):
        task_of(tiny_mlp(), data)


class PlainModel(nn.Module):
    """Takes token ids by position, as nanoGPT does."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(256, 8)

    def forward(self, idx: Tensor) -> Tensor:
        return self.words(idx)


@pytest.mark.parametrize("model", [tiny_llama, tiny_bert, PlainModel])
def test_too_few_texts_to_tune_on_are_all_judged(model: Any) -> None:
    task = task_of(model(), TEXTS[:4], tunes=False)
    assert task.documents == {"calibration": 0, "development": 0, "test": 4}
    assert not task.splits.calibration and not task.splits.development


def test_text_without_a_tokenizer_is_refused() -> None:
    with pytest.raises(InputError, match="model has no tokenizer"):
        make_task(source_of(tiny_mlp(), None), tiny_mlp(), TEXTS)


def test_what_a_language_model_is() -> None:
    assert is_language_model(tiny_llama())
    assert not is_language_model(tiny_bert())
    assert not is_language_model(tiny_mlp())


@pytest.mark.parametrize("pads", [True, False])
def test_encoders_get_no_more_tokens_than_positions(pads: bool) -> None:
    sizes = {"vocab_size": 256, "hidden_size": 32, "intermediate_size": 48}
    config = transformers.RobertaConfig(
        **sizes,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=26,
        pad_token_id=1,
    )
    model = transformers.RobertaModel(config).eval()
    tokenizer = padding_tokenizer if pads else byte_tokenizer
    task = make_task(source_of(model, tokenizer), model, TEXTS)
    batch = task.splits.development[0]
    assert batch["input_ids"].shape == (12 if pads else 1, 24)  # two rows stand before the first
    assert model(**batch).last_hidden_state.isfinite().all()


def test_what_a_metric_does_to_a_batch_is_gone_at_its_next_call() -> None:
    def popping(model: nn.Module, batch: Any) -> Tensor:
        labels = batch.pop("labels")
        batch["x"].mul_(3)
        return labels.float() + batch["x"][:, 0]

    task = task_of(tiny_mlp(), [{"x": torch.randn(64, 10), "labels": torch.arange(64)}], popping)
    first, again = (task.metric().scores(tiny_mlp(), task.splits.test).total for _ in range(2))
    assert torch.equal(first, again)


def test_groups_may_be_names() -> None:
    names = [f"patient {i // 4}" for i in range(48)]
    found = []
    for part in (names[:26], names[26:]):  # a patient in both
        ids = group_ids(lambda _, part=part: part, torch.zeros(len(part), 1))  # type: ignore[misc]
        again = group_ids(lambda _, part=part: np.array(part), torch.zeros(len(part), 1))  # type: ignore[misc]
        assert torch.equal(ids, again)
        found += ids.tolist()
    assert [found.index(i) for i in found] == [names.index(name) for name in names]


PAIR = torch.randn(40, 10), torch.arange(40) % 10


def test_one_batch_in_the_place_of_data_is_told_how_to_be_passed() -> None:
    with pytest.raises(InputError, match=r"2 examples, too few .*data=\[\(x, y\)\]"):
        task_of(tiny_mlp(), PAIR)


def test_too_few_groups_are_called_groups() -> None:
    metric = Metric(lambda model, batch: 1.0, groups=lambda batch: batch[1] % 2)
    with pytest.raises(InputError, match=r"2 groups, too few .*groups="):
        task_of(tiny_mlp(), [PAIR], metric)
