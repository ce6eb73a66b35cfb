"""Metrics of boxes, rankings, losses and speech, against loops by hand; which data they are for."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from scipy.stats import spearmanr
from tiny_models import byte_tokenizer
from torch import Tensor, nn
from transformers.modeling_outputs import ModelOutput

from tauten.core.errors import InputError
from tauten.evaluation.detection import BoxF1, f1, overlaps
from tauten.evaluation.fitting import fitting, of_speech
from tauten.evaluation.own_loss import OwnLoss, own_loss
from tauten.evaluation.ranking import RankCorrelation
from tauten.evaluation.task import make_task
from tauten.evaluation.tensor_metrics import Accuracy, Agreement
from tauten.models.source import open_source

GENERATOR = torch.manual_seed(0)


class Returns(nn.Module):
    """Returns what it is told, for the rows that it is called on."""

    def __init__(self, answer: Any):
        super().__init__()
        self.answer = answer

    def forward(self, x: Any, **others: Any) -> Any:
        return self.answer(x)


def boxes(*corners: tuple[float, ...], labels: Any = None, scores: Any = None) -> dict[str, Tensor]:
    found = {"boxes": torch.tensor(corners).float().view(-1, 4)}
    found["labels"] = torch.tensor(labels or [1] * len(corners))
    found["scores"] = torch.tensor(scores or [0.9] * len(corners))
    return found


def test_overlap_is_intersection_over_union() -> None:
    one, other = torch.tensor([[0.0, 0, 2, 2], [5, 5, 6, 6]]), torch.tensor([[1.0, 0, 3, 2]])
    assert overlaps(one, other).flatten().tolist() == pytest.approx([1 / 3, 0])


A, B = (0.0, 0, 10, 10), (20.0, 20, 30, 30)


@pytest.mark.parametrize(
    ("found", "wanted", "score"),
    [
        (boxes(A, B), boxes(B, A), 1.0),
        (boxes(A), boxes(A, B), 2 / 3),
        (boxes(A, A), boxes(A), 2 / 3),  # one box isn't found twice
        (boxes(A, labels=[2]), boxes(A), 0.0),
        (boxes((0, 0, 10, 4)), boxes(A), 0.0),  # it overlaps by 0.4
        (boxes((0, 0, 10, 6)), boxes(A), 1.0),
        (boxes(), boxes(), 1.0),
        (boxes(), boxes(A), 0.0),
        (boxes(A), boxes(), 0.0),
    ],
)
def test_f1_of_boxes(found: Any, wanted: Any, score: float) -> None:
    assert f1(found, wanted) == pytest.approx(score)


def test_detectors_are_measured_by_boxes_beside_targets_or_the_original() -> None:
    images = [torch.zeros(3, 8, 8), torch.zeros(3, 6, 9)]
    original = Returns(lambda x: [boxes(A, B, scores=[0.9, 0.3]) for _ in x])
    other = Returns(lambda x: [boxes(B) for _ in x])
    for batch, score in (((images,), 0.0), ((images, [boxes(A), boxes(B)]), 0.5)):
        assert [*fitting(batch, original(images))] == ["box_f1"]
        metric = BoxF1()
        metric.prepare(original, [batch])
        assert metric.value(metric.scores(other, [batch])) == score
    nothing = Returns(lambda x: [boxes() for _ in x])
    with pytest.raises(InputError, match="no box in any image"):
        BoxF1().prepare(nothing, [(images,)])


@pytest.mark.parametrize("with_targets", [True, False])
def test_rank_correlation_is_scipys_by_query(with_targets: bool) -> None:
    x = torch.randn(30, 2, generator=GENERATOR)
    query, grade = torch.arange(30) // 6, torch.randint(0, 4, (30,), generator=GENERATOR)
    grade[query == 4] = 2  # nothing stands above another: this query doesn't count
    batch = (torch.cat([x, query[:, None]], 1), grade)
    batches: list[Any] = [tuple(part[rows] for part in batch) for rows in torch.arange(30).split(7)]
    if not with_targets:
        batches = [inputs for inputs, _ in batches]
    original, model = Returns(lambda x: x[:, :1]), Returns(lambda x: x[:, :1] + x[:, 1:2].round())
    metric = RankCorrelation(lambda b: (b[0] if with_targets else b)[:, 2].long())
    metric.prepare(original, batches)
    found = metric.scores(model, batches).total
    wanted = grade if with_targets else original(x)[:, 0]
    expected = [
        spearmanr(model(x)[query == q, 0], wanted[query == q]).statistic
        for q in range(4 if with_targets else 5)
    ]
    assert found.tolist() == pytest.approx(expected)


def test_grades_of_candidates_are_ranked_by_row() -> None:
    scores, grades = torch.randn(9, 5, generator=GENERATOR), torch.arange(45).view(9, 5) % 4
    batch = (torch.zeros(9, 1), grades)
    assert next(iter(fitting(batch, scores))) == "rank_correlation"
    metric = RankCorrelation()
    metric.prepare(Returns(lambda x: scores), [batch])
    found = metric.scores(Returns(lambda x: scores), [batch]).total
    pairs = zip(scores, grades, strict=True)
    assert found.tolist() == pytest.approx([spearmanr(s, g).statistic for s, g in pairs])


def test_equal_scores_rank_nothing() -> None:
    metric = RankCorrelation()
    metric.prepare(Returns(lambda x: x), [torch.randn(3, 4, generator=GENERATOR)])
    found = metric.scores(Returns(torch.ones_like), [torch.zeros(3, 4)])
    assert found.total.tolist() == [0, 0, 0]


def test_a_dict_of_losses_is_summed_by_example() -> None:
    x = torch.rand(5, 2, generator=GENERATOR)
    model = Returns(lambda x: {"near": x[:, 0].mean(), "far": x[:, 1].square().mean()})
    assert [*fitting(x, model(x))] == ["loss"]
    found = OwnLoss().scores(model, [x]).total
    assert found.tolist() == pytest.approx((x[:, 0] + x[:, 1] ** 2).tolist())
    assert not OwnLoss.higher_is_better
    total = own_loss({"loss": torch.tensor(3.0), "part": torch.tensor(1.0)})
    assert total is not None and float(total) == 3, "its parts aren't added again"
    assert own_loss({"logits": torch.ones(2, 2)}) is None


def test_labels_in_a_dict_are_targets() -> None:
    x = torch.randn(6, 4, generator=GENERATOR)
    output = ModelOutput(loss=torch.tensor(1.0), logits=x)
    classes = {"x": x, "labels": torch.arange(6) % 4}
    assert next(iter(fitting(classes, output).values())) is Accuracy
    metric = Accuracy()
    metric.prepare(Returns(lambda x: output), [classes])
    right = (x.argmax(1) == classes["labels"]).double()
    assert torch.equal(metric.scores(Returns(lambda x: x), [classes]).total, right)
    of_tokens = {"x": x, "labels": torch.arange(12).view(6, 2)}  # perhaps those of the next token
    tokens = ModelOutput(loss=torch.tensor(1.0), logits=torch.randn(6, 2, 4))
    assert [*fitting(of_tokens, tokens)] == ["loss"]
    without = ModelOutput(logits=x[:, :1])
    assert next(iter(fitting({"x": x}, without).values())) is Agreement


def test_a_small_last_batch_of_logits_is_not_taken_for_probabilities() -> None:
    logits = torch.tensor([3.0, -2, 4, -1, 0.3])
    batches = [(logits[:4], (logits[:4] > 0).long()), (logits[4:], torch.tensor([1]))]
    metric = Accuracy()
    metric.prepare(Returns(lambda x: x), batches)
    assert metric.scores(Returns(lambda x: x), batches).total.tolist() == [1] * 5


def test_padding_does_not_count_as_right_or_wrong() -> None:
    output = torch.tensor([[[0.0, 1], [1, 0]], [[0, 1], [0, 1]]])
    inputs = {"x": torch.zeros(2, 2), "attention_mask": torch.tensor([[1, 0], [1, 1]])}
    batch = (inputs, torch.tensor([[1, 1], [1, 0]]))
    metric, model = Accuracy(), Returns(lambda x: output)
    metric.prepare(model, [batch])
    assert metric.scores(model, [batch]).total.tolist() == [1, 0.5]


class Speaks(nn.Module):
    """Generates given token rows."""

    def __init__(self, ids: Tensor):
        super().__init__()
        self.ids, self.config = ids, None

    def generate(self, input_features: Tensor, max_new_tokens: int, do_sample: bool) -> Tensor:
        return self.ids[:, :max_new_tokens]


def token_rows(tokenizer: Any, texts: list[str], padding: int) -> Tensor:
    rows = [torch.tensor(tokenizer(text)["input_ids"]) for text in texts]
    return nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=padding)


def test_word_error_rate_is_that_of_jiwer() -> None:
    jiwer = pytest.importorskip("jiwer")
    tokenizer = byte_tokenizer()
    said = ["The cat sat.", "two dogs ran far", "yes"]
    heard = ["the cat sat", "two dogs run", "yes it is"]
    labels = token_rows(tokenizer, said, -100)
    batch = {"input_features": torch.zeros(3, 4), "labels": labels}
    model = Speaks(token_rows(tokenizer, heard, -100))
    kind = of_speech(model, batch, lambda: tokenizer)
    assert kind is not None
    metric = kind()
    scores = metric.scores(model, [batch])
    assert scores.total.tolist() == [0, 2, 2] and scores.weight.tolist() == [3, 4, 1]
    plain = [text.lower().replace(".", "") for text in said]
    assert metric.value(scores) == pytest.approx(jiwer.wer(plain, heard))


def test_a_whisper_folder_is_measured_by_its_words(tmp_path: Path) -> None:
    pytest.importorskip("jiwer")
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "num_mel_bins": 8}
    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
    sizes = {"vocab_size": 256, "d_model": 32, "encoder_layers": 1, "decoder_layers": 1}
    limits = {"max_source_positions": 50, "max_target_positions": 40}
    free = {"suppress_tokens": None, "begin_suppress_tokens": None}
    config = transformers.WhisperConfig(**sizes, **heads, **special, **limits, **free)
    transformers.WhisperForConditionalGeneration(config).save_pretrained(tmp_path)
    tokenizer = byte_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    labels = token_rows(tokenizer, [f"this is sentence {i}" for i in range(30)], -100)
    batch = {"input_features": torch.randn(30, 8, 100), "labels": labels}
    source = open_source(str(tmp_path))
    task = make_task(source, source.skeleton(), [batch])
    scores = task.metric().scores(source.open(), task.splits.test)
    assert task.metric().name == "word_error_rate" and scores.weight.tolist() == [4] * 12
    assert scores.total.min() >= 3, "it was never trained"


def test_speech_without_a_tokenizer_is_refused_with_the_line_to_write() -> None:
    batch = {"input_features": torch.zeros(3, 4), "labels": torch.ones(3, 2).long()}
    with pytest.raises(InputError, match=r"tokenizer of its labels.*tauten\.Metric"):
        of_speech(Speaks(torch.ones(3, 2)), batch, None)
    assert of_speech(nn.Linear(1, 1), batch, None) is None
    assert of_speech(Speaks(torch.ones(3, 2)), {"input_ids": batch["labels"]}, None) is None
