"""Batches, rows and examples of many rows are told apart by what the model makes of them."""

import logging
from typing import Any

import numpy
import pytest
import torch
from tiny_models import byte_tokenizer, tiny_bert, tiny_cnn, tiny_llama, tiny_mlp
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from tauten.core.errors import InputError
from tauten.data.items import ItemReader, Kind
from tauten.data.tensors import load_rows, rows_of

generator = torch.manual_seed(0)
VECTORS = torch.randn(40, 10, generator=generator)
IMAGES = torch.randn(40, 1, 12, 12, generator=generator)
IDS = torch.randint(0, 256, (40, 9), generator=generator)


class Cloud(nn.Module):
    """The points of a call are one example."""

    def __init__(self) -> None:
        super().__init__()
        self.points = nn.Linear(10, 8)

    def forward(self, points: Tensor) -> Tensor:
        return self.points(points).amax(0, keepdim=True)


class Causal(nn.Module):
    """Places of a sequence come first, and each knows those before it."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRU(10, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.cell(x)[0]


class Noisy(nn.Module):
    """Draws at random."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(10, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) + torch.randn(1)


BATCH, ROW, WHOLE = Kind.BATCH, Kind.ROW, Kind.WHOLE
CASES: dict[str, tuple[Any, Any, Kind]] = {
    "vectors": (tiny_mlp, VECTORS, BATCH),
    "one vector": (tiny_mlp, VECTORS[0], ROW),
    "a batch of one": (tiny_mlp, VECTORS[:1], BATCH),
    "a batch of two": (tiny_mlp, VECTORS[:2], BATCH),
    "images": (tiny_cnn, IMAGES, BATCH),
    "an image": (tiny_cnn, IMAGES[0], ROW),
    "an image and its class": (tiny_cnn, (IMAGES[0], torch.tensor(3)), ROW),
    "tokens": (tiny_llama, {"input_ids": IDS}, BATCH),
    "tokens of one text": (tiny_llama, {"input_ids": IDS[0]}, ROW),
    "points": (Cloud, VECTORS, WHOLE),
    "two points": (Cloud, VECTORS[:2], WHOLE),
    "places first": (Causal, VECTORS[:, None], WHOLE),
    "random": (Noisy, VECTORS, BATCH),
    "what doesn't fit": (tiny_mlp, VECTORS[:, :3], BATCH),
    "in training": (lambda: nn.Sequential(nn.Linear(10, 4), nn.BatchNorm1d(4)), VECTORS, BATCH),
}


@pytest.mark.parametrize("case", CASES)
def test_what_an_item_is(case: str) -> None:
    torch.manual_seed(0)
    build, item, kind = CASES[case]
    model = build()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    assert ItemReader.of(item, model).kind is kind
    assert all(torch.equal(before[name], x) for name, x in model.state_dict().items())
    assert modes == [module.training for module in model.modules()]


@pytest.mark.parametrize(("ids", "kind"), [(IDS, BATCH), (IDS[0], ROW)])
def test_models_that_are_not_in_memory_take_batches_of_tokens(ids: Tensor, kind: Kind) -> None:
    for item in ({"input_ids": ids}, (ids, ids)):
        assert ItemReader.of(item, tiny_llama().to("meta")).kind is kind


Y = torch.arange(40) % 4
FORMS: dict[str, Any] = {
    "loader": DataLoader(TensorDataset(VECTORS, Y), 7),
    "data set": TensorDataset(VECTORS, Y),
    "rows": list(zip(VECTORS, Y, strict=True)),
    "rows and numbers": list(zip(VECTORS, Y.tolist(), strict=True)),
    "arrays": [(VECTORS.double().numpy(), Y.numpy())],
    "pair": [(VECTORS, Y)],
}


@pytest.mark.parametrize("form", FORMS)
def test_pairs_of_any_form_are_the_same_examples(form: str) -> None:
    rows = load_rows(FORMS[form], tiny_mlp())
    assert len(rows) == 40
    inputs, targets = rows.take([3, 1])[0]
    assert torch.equal(inputs, VECTORS[[3, 1]]) and targets.tolist() == [3, 1]


@pytest.mark.parametrize(
    "data",
    [VECTORS.numpy(), VECTORS.double().numpy(), VECTORS.tolist(), list(VECTORS), iter([VECTORS])],
)
def test_vectors_of_any_form_are_the_same_examples(data: Any) -> None:
    rows = load_rows(data, tiny_mlp())
    assert len(rows) == 40
    assert torch.equal(rows.take([7])[0], VECTORS[[7]])


def test_arrays_take_the_models_dtype() -> None:
    rows = load_rows(VECTORS.numpy(), tiny_mlp().double())
    assert rows.take([0])[0].dtype == torch.float64


TEXTS = ["ten bytes!", "and eleven!", "ten again!"] * 5


def test_rows_of_a_tokenizer_are_examples_whatever_their_length() -> None:
    encoded = byte_tokenizer()(TEXTS)
    for data in (encoded, [encoded], [dict(zip(encoded, r)) for r in zip(*encoded.values())]):  # noqa: B905
        rows = load_rows([data] if not isinstance(data, list) else data, tiny_bert())
        lengths = [batch["input_ids"].shape for batch in rows.take(range(len(rows)))]
        assert lengths == [(1, len(text)) for text in TEXTS]


def test_rows_that_belong_together_stay_together() -> None:
    clouds = list(VECTORS.view(4, 10, 10))
    rows = load_rows(clouds, Cloud())
    assert [torch.equal(a, b) for a, b in zip(rows.take(range(4)), clouds, strict=True)] == [
        True
    ] * 4


def test_numbers_and_names_beside_tensors_go_along() -> None:
    data = [
        {"x": VECTORS[:30], "scale": 2.0, "id": [str(i) for i in range(30)]},
        {"x": VECTORS[30:], "scale": 2.0, "id": [str(i) for i in range(30, 40)]},
    ]
    (batch,) = load_rows(data).take([35, 2])
    assert torch.equal(batch["x"], VECTORS[[35, 2]])
    assert batch["scale"] == 2.0 and batch["id"] == ["35", "2"]
    data[1]["scale"] = 3.0
    assert [batch["scale"] for batch in load_rows(data).take([0, 1])] == [2.0, 3.0]


def test_what_was_read_and_left_out_is_said(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    rows = load_rows([{"input_ids": IDS, "labels": Y}] * 2, tiny_bert())
    assert set(rows.take([0])[0]) == {"input_ids"}
    said = "data: 80 examples in 2 batches; left out: labels, which BertModel doesn't take"
    assert said in caplog.messages
    given = load_rows([{"input_ids": IDS, "labels": Y}], tiny_bert(), as_given=True)
    assert set(given.take([0])[0]) == {"input_ids", "labels"}  # a user's own metric sees them


@pytest.mark.parametrize("item", [{"x": VECTORS, "y": object()}, {"x": "name"}, (VECTORS, "name")])
def test_what_cannot_stand_beside_tensors_is_named(item: Any) -> None:
    with pytest.raises(InputError, match=r"batch 2 holds something else than tensors(: a \w+)?;"):
        load_rows([VECTORS, item])


def test_tokens_in_few_bytes_are_whole_numbers() -> None:
    ids = IDS.numpy().astype(numpy.uint16)
    assert torch.equal(load_rows([ids], tiny_llama()).take(range(40))[0], IDS)


@pytest.mark.parametrize("batch", [[VECTORS, Y], [[VECTORS, VECTORS], Y], ((VECTORS, VECTORS), Y)])
def test_a_batch_has_as_many_rows_as_its_first_tensor(batch: Any) -> None:
    assert rows_of(batch) == 40


def test_object_arrays_are_refused() -> None:
    with pytest.raises(InputError, match="a ndarray"):
        load_rows(numpy.array([{"a": 1}], dtype=object))


def test_a_batch_that_lacks_a_key_is_named_by_its_number() -> None:
    with pytest.raises(InputError, match=r"batch 2: Two\.forward requires z; the batch has x"):
        load_rows([{"x": VECTORS, "z": VECTORS}, {"x": VECTORS}], Two())


class Two(nn.Module):
    """Takes two required arguments."""

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        return x + z
