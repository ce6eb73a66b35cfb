"""Data is read once, whatever it is, and none of it is lost on the way."""

from collections.abc import Iterator
from typing import Any

import numpy
import pytest
import torch
from tiny_models import tiny_mlp
from torch.utils.data import DataLoader, Dataset, TensorDataset

from tauten.core.errors import InputError
from tauten.data.calibration import load_training
from tauten.data.reading import read_data
from tauten.data.texts import Texts
from tauten.models.source import module_source

BATCHES = [torch.full((2, 10), float(i)) for i in range(5)]


class Loader:
    """Gives its items anew each time."""

    def __init__(self, items: list[Any]):
        self.items, self.passes = items, 0

    def __iter__(self) -> Iterator[Any]:
        self.passes += 1
        yield from self.items


class Once(Loader):
    """Gives its items once."""

    def __iter__(self) -> Iterator[Any]:
        while self.items:
            yield self.items.pop(0)


class Table:
    """As pandas has them: iterates over its header."""

    columns = ("id", "text")

    def __iter__(self) -> Iterator[str]:
        return iter(self.columns)

    def to_dict(self, orient: str) -> list[dict[str, Any]]:
        assert orient == "records"
        return [{"id": 1, "text": "a"}, {"id": 2, "text": "b"}]


class Named(Dataset[Any]):
    """Texts with their classes."""

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"text": "ab"[index], "label": index}


@pytest.mark.parametrize(
    "data",
    [
        ["a", "b"],
        ("a", "b"),
        iter(["a", "b"]),
        numpy.array(["a", "b"]),
        Loader(["a", "b"]),
        Once(["a", "b"]),
        [{"text": "a", "label": 0}, {"text": "b", "label": None}],
        Loader([{"text": "a", "label": 0}, {"text": "b", "label": 1}]),
        {"text": ["a", "b"], "label": [0, 1]},
        Table(),
        Named(),
    ],
    ids=lambda data: type(data).__name__,
)
def test_texts_of_any_form_are_documents(data: Any) -> None:
    read = read_data(data)
    assert isinstance(read, Texts) and [d.text for d in read.documents] == ["a", "b"]
    assert read_data(read) is read


@pytest.mark.parametrize(
    "data", [BATCHES, DataLoader(TensorDataset(torch.ones(3))), {"x": torch.ones(2)}, None]
)
def test_tensors_stay_as_they_are(data: Any) -> None:
    read = read_data(data)
    assert read is data or read == [data]
    with pytest.raises(InputError, match="text_column='text': the data isn't text"):
        read_data(data, text_column="text")


def test_a_loader_is_asked_anew_in_each_pass_and_the_look_at_it_costs_none() -> None:
    loader = Loader(BATCHES)
    read = read_data(loader)
    for passes in (1, 2, 3):
        assert [float(batch[0, 0]) for batch in read] == [0, 1, 2, 3, 4]
        assert loader.passes == passes


def test_an_iterable_that_ends_loses_nothing_and_is_missed_when_read_again() -> None:
    model = tiny_mlp()
    training = load_training(module_source(model), model, read_data(Once(list(BATCHES))))
    assert [float(batch.args[0][0, 0]) for batch in training] == [0, 1, 2, 3, 4]
    with pytest.raises(InputError, match="gave no batches when it was read again: pass a list"):
        next(iter(training))


def test_training_reads_rows_of_a_data_set_and_of_a_loader_alike() -> None:
    model, rows = tiny_mlp(), torch.randn(6, 10)
    source, found = module_source(model), []
    for data in (TensorDataset(rows), list(rows), DataLoader(rows, batch_size=None)):
        batches = load_training(source, model, data)
        found.append(torch.cat([batch.args[0] for batch in batches]))
    assert all(torch.equal(one, rows) for one in found)


def test_an_iterator_serves_every_pass() -> None:
    model = tiny_mlp()
    training = load_training(module_source(model), model, iter(BATCHES))
    for _ in range(2):
        assert torch.equal(torch.cat([batch.args[0] for batch in training]), torch.cat(BATCHES))


def test_an_iterable_without_items_is_refused() -> None:
    model = tiny_mlp()
    with pytest.raises(InputError, match="data is empty"):
        load_training(module_source(model), model, read_data(Loader([])))
