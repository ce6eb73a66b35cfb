"""Batches of any shape become independent examples, or are refused by number."""

from collections import namedtuple
from types import SimpleNamespace
from typing import Any

import numpy
import pytest
import torch
import transformers
from torch.utils.data import DataLoader, TensorDataset

from tauten.core.errors import InputError
from tauten.data.tensors import call_model, inputs_of, listed, load_rows, main_output


def test_rows_of_a_loader_are_examples_again() -> None:
    inputs, targets = torch.randn(150, 3), torch.arange(150)
    rows = load_rows(DataLoader(TensorDataset(inputs, targets), batch_size=16))
    assert len(rows) == 150
    chosen = [149, 3, 70, *range(80, 147)]
    batches = rows.take(chosen)
    assert [len(batch[1]) for batch in batches] == [64, 6]
    assert torch.equal(torch.cat([batch[0] for batch in batches]), inputs[chosen])
    assert torch.equal(torch.cat([batch[1] for batch in batches]), targets[chosen])


@pytest.mark.parametrize(
    "wrap",
    [
        lambda x: x,
        lambda x: (x,),
        lambda x: [x, x + 1],
        lambda x: {"a": x, "b": {"c": x + 2}},
        lambda x: ({"ids": x}, x + 3),
    ],
)
def test_batches_keep_their_form(wrap: Any) -> None:
    whole = torch.arange(20.0).view(10, 2)
    rows = load_rows([wrap(whole[:7]), wrap(whole[7:])])
    assert len(rows) == 10
    (batch,) = rows.take([9, 0])
    leaves, spec = torch.utils._pytree.tree_flatten(batch)
    expected, expected_spec = torch.utils._pytree.tree_flatten(wrap(whole[[9, 0]]))
    assert spec == expected_spec
    assert all(map(torch.equal, leaves, expected))


def test_one_tensor_is_rows() -> None:
    whole = torch.randn(12, 4)
    assert torch.equal(load_rows(whole).take([3, 5])[0], whole[[3, 5]])


@pytest.mark.parametrize(
    "batches",
    [
        [torch.zeros(2, 3), torch.zeros(2, 4)],  # lengths differ
        [(torch.zeros(2, 3), torch.zeros(2, 4)), (torch.zeros(2, 3), torch.zeros(2, 5))],
        [torch.tensor(1.0), torch.tensor(2.0)],  # no rows
        [(torch.zeros(2, 3), torch.zeros(1)), (torch.zeros(2, 3), torch.zeros(1))],
        [torch.zeros(2, 3), (torch.zeros(2, 3),)],  # forms differ
    ],
)
def test_batches_that_cannot_be_taken_apart_are_examples_themselves(batches: list[Any]) -> None:
    rows = load_rows(batches)
    assert len(rows) == 2
    assert rows.take([1, 0])[0] is batches[1]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "empty"),
        (5, "int; expected an iterable"),
        ("text", "str; expected an iterable"),
        (None, "NoneType; expected an iterable"),
        ([torch.zeros(2), "a"], "batch 2 holds something else"),
        ([(torch.zeros(2), 3)], "batch 1 holds something else"),
        ([()], "batch 1 holds something else"),
        ([torch.zeros(2), torch.tensor([1.0, torch.nan])], "batch 2 holds NaN"),
        ([{"x": torch.tensor([torch.inf])}], "batch 1 holds NaN or infinity"),
    ],
)
def test_what_holds_no_examples_is_refused(data: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_rows(data)


def test_models_are_called_as_their_batches_ask() -> None:
    class Add(torch.nn.Module):
        def forward(self, a: torch.Tensor, b: float = 0.0) -> torch.Tensor:
            return a + b

    x = torch.ones(2)
    assert call_model(Add(), x).tolist() == [1, 1]
    assert call_model(Add(), (x, torch.zeros(2))).tolist() == [1, 1]
    assert call_model(Add(), {"a": x, "b": 2.0}).tolist() == [3, 3]
    assert call_model(Add(), ({"a": x, "b": 2.0}, x)).tolist() == [3, 3]
    assert inputs_of({"a": x}) == {"a": x}


def test_the_output_that_counts() -> None:
    x, y = torch.ones(1), torch.zeros(1)
    assert main_output(x) is x
    assert main_output((x, y)) is x
    assert main_output({"b": x}) is x
    assert main_output(SimpleNamespace(loss=y, logits=x)) is x
    assert main_output(SimpleNamespace(last_hidden_state=x)) is x
    assert main_output(namedtuple("Out", "first second")("text", x)) is x
    with pytest.raises(InputError, match="list without a tensor"):
        main_output(["a"])


def test_a_tokenizers_encoding_is_a_batch_of_its_tensors() -> None:
    ids = torch.arange(40).view(20, 2)
    encoding = transformers.BatchEncoding(
        {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    )
    assert listed(encoding) == ([dict(encoding)], False)
    for data in ([encoding], [(encoding, torch.zeros(20))]):
        rows = load_rows(data)
        assert len(rows) == 20
        assert torch.equal(inputs_of(rows.take([3])[0])["input_ids"], ids[3:4])
    assert type(inputs_of(encoding)) is dict


def test_arrays_are_tensors() -> None:
    rows = load_rows([numpy.ones((4, 3), dtype=numpy.float32)])
    assert len(rows) == 4 and rows.take([0])[0].dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.bool])
def test_examples_that_repeat_others_are_told_by_all_that_they_hold(dtype: torch.dtype) -> None:
    values, names = torch.tensor([0, 1, 0, 0]).to(dtype), ["a", "b", "a", "c"]
    batch = {"x": values[:, None, None], "y": values, "names": names, "scale": 2.0}
    contents = load_rows([batch]).contents()
    assert [contents.index(content) for content in contents] == [0, 1, 0, 3]
