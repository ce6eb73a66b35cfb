"""Data in any form, through the calls that users make: what it is packed on is the same."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from test_cli import tauten as run_command
from tiny_models import byte_tokenizer, tiny_bert, tiny_llama, tiny_mlp
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import tauten
from tauten.core.errors import InputError

GPTQ = tauten.GPTQ(3, group_size=16)
TEXTS = [f"Text {i} tells of {i * i} things, and of what became of them." for i in range(30)]
X, Z = torch.randn(2, 60, 16, generator=torch.manual_seed(0)).unbind()


def padding_tokenizer(template: str | None = None) -> Any:
    tokenizer = byte_tokenizer()
    tokenizer.pad_token, tokenizer.chat_template = "!", template
    return tokenizer


class Two(nn.Module):
    """Takes two required arguments, which differ in strength from column to column."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(16, 8), nn.Linear(16, 8)

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        return self.first(x * torch.arange(16.0)) + self.second(z * torch.arange(16.0) ** 2)


class Pooled(nn.Module):
    """Takes one dict, as sentence-transformers' modules do, and packs its layer on real tokens."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words, self.layer = nn.Embedding(256, 16), nn.Linear(16, 8)

    def forward(self, features: Mapping[str, Tensor], **kwargs: Any) -> dict[str, Any]:
        tokens = self.layer(self.words(features["input_ids"]))
        return {**features, "sentence_embedding": tokens.mean(1)}


class PlainGPT(nn.Module):
    """As in nanoGPT: logits of the last place only, unless there are targets."""

    block_size = 24

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words, self.places = nn.Embedding(256, 16), nn.Embedding(24, 16)
        self.layer, self.head = nn.Linear(16, 16), nn.Linear(16, 256)

    def forward(self, idx: Tensor, targets: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        x = self.layer(self.words(idx) + self.places(torch.arange(idx.shape[1])))
        if targets is None:
            return self.head(x[:, [-1]]), None
        logits = self.head(x)
        return logits, nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())


def packed_on(model: Any, data: Any, **options: Any) -> dict[str, Tensor]:
    return tauten.quantize(model, technique=GPTQ, data=data, **options).state_dict()


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(x, other[k]) for k, x in one.items())


def test_two_required_arguments_are_both_calibrated_on() -> None:
    wanted = packed_on(Two(), [{"x": X, "z": Z}])
    pairs, y = TensorDataset(X, Z), torch.zeros(60)
    for data in (
        [(X, Z)],
        [(X, Z, y)],
        [((X, Z), y)],
        DataLoader(pairs, 20),
        pairs,
        [(x.numpy(), z.numpy()) for x, z in zip(X.split(20), Z.split(20), strict=True)],
    ):
        assert same(packed_on(Two(), data), wanted)
    assert not same(packed_on(Two(), [(X, X)]), wanted)


def test_padding_of_a_tuple_or_of_the_one_dict_is_left_out() -> None:
    ids = torch.arange(600).view(60, 10) % 251
    mask = torch.arange(10) < torch.arange(60)[:, None] % 7 + 3
    dicts = {"input_ids": ids, "attention_mask": mask.long()}
    wanted = packed_on(tiny_bert(), [dicts])
    assert same(packed_on(tiny_bert(), [(ids, mask.long(), torch.zeros(60))]), wanted)
    other = {"input_ids": torch.where(mask, ids, 7), "attention_mask": mask.long()}
    assert same(packed_on(Pooled(), [dicts]), packed_on(Pooled(), [other]))
    assert same(packed_on(Pooled(), dicts), packed_on(Pooled(), [other]))


def test_labels_that_a_model_does_not_take_change_nothing() -> None:
    ids = torch.arange(600).view(60, 10) % 251
    labelled = {"input_ids": ids, "labels": torch.zeros(60), "names": ["a"] * 60}
    assert same(packed_on(tiny_bert(), [labelled]), packed_on(tiny_bert(), [{"input_ids": ids}]))


def test_texts_are_read_by_the_tokenizer_that_is_passed(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    folder = tmp_path / "model"
    tiny_llama().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    wanted = packed_on(folder, TEXTS)
    for given in (tokenizer, folder, str(folder), tokenizer._tokenizer, tokenizer.encode):
        assert same(packed_on(tiny_llama(), TEXTS, tokenizer=given), wanted)
    for given in (tmp_path, tmp_path / "none"):
        with pytest.raises(InputError, match=f"tokenizer={given}: no folder that holds a token"):
            packed_on(tiny_llama(), TEXTS, tokenizer=given)
    with pytest.raises(InputError, match="tokenizer is a int: expected one of transformers"):
        packed_on(tiny_llama(), TEXTS, tokenizer=3)
    with pytest.raises(InputError, match="tokenizer made a str of a text: expected whole numbers"):
        packed_on(tiny_llama(), TEXTS, tokenizer=str.split)


def test_columns_and_chats_are_read_in_memory() -> None:
    wanted = packed_on(tiny_llama(), TEXTS, tokenizer=byte_tokenizer())
    rows = [{"id": "x", "title": "t", "body": text} for text in TEXTS]
    found = packed_on(tiny_llama(), rows, tokenizer=byte_tokenizer(), text_column="body")
    assert same(found, wanted)
    chats = [[{"role": "user", "content": text}] for text in TEXTS]
    template = "{{ messages[0].content }}"
    assert same(packed_on(tiny_llama(), chats, tokenizer=padding_tokenizer(template)), wanted)


def test_every_call_takes_tokenizer_and_column() -> None:
    rows = [{"id": "x", "title": "t", "body": text} for text in TEXTS]
    reading: dict[str, Any] = {"tokenizer": byte_tokenizer(), "text_column": "body"}
    half = tauten.compress(tiny_llama(), technique="prune_wanda", data=rows, **reading)
    assert same(
        half.state_dict(),
        tauten.compress(
            tiny_llama(), technique="prune_wanda", data=TEXTS, tokenizer=byte_tokenizer()
        ).state_dict(),
    )
    goal = tauten.Goal(max_drop=None, max_size_bytes=10**9)
    options: dict[str, Any] = {"pillars": ("quantize",), "effort": "quick", "max_tokens": 600}
    result = tauten.optimize(tiny_llama(), rows, goal, **options, **reading)
    assert result.test is not None and result.test.metric == "perplexity"


def test_the_command_line_takes_the_column_and_the_tokenizer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.py").write_text("from tiny_models import tiny_llama as build\n")
    byte_tokenizer().save_pretrained(tmp_path / "tokenizer")
    rows = [{"id": "x", "title": "t", "body": text} for text in TEXTS]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    command = ("quantize", "own:build", "--technique", "gptq", "--data", "rows.json", "-o", "out")
    named = ("--text-column", "body", "--tokenizer", "tokenizer")
    done = run_command(*command, *named[2:])
    assert done.exit_code == 2 and "pass text_column= (--text-column)" in " ".join(
        done.output.split()
    )
    done = run_command(*command, *named)
    assert done.exit_code == 0, done.output
    first, *_ = done.output.splitlines()
    assert first.startswith("data: rows.json: 30 documents of")


def test_a_plain_model_takes_texts_and_tokens() -> None:
    tokenizer = byte_tokenizer()
    ids = torch.tensor([tokenizer(text)["input_ids"][:25] for text in TEXTS])
    wanted = packed_on(PlainGPT(), [(ids[:, :-1], ids[:, 1:])])
    for own in (tokenizer, tokenizer.encode, lambda text: {"input_ids": tokenizer.encode(text)}):
        assert same(packed_on(PlainGPT(), TEXTS, tokenizer=own), wanted)
    assert not same(packed_on(PlainGPT(), [ids[:, :24]]), wanted)  # the last places' head alone


def test_a_plain_model_is_certified_on_texts() -> None:
    model = PlainGPT()
    ids = torch.tensor([byte_tokenizer()(text)["input_ids"][:25] for text in TEXTS])
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    for _ in range(100):
        optimizer.zero_grad()
        model(ids[:, :-1], ids[:, 1:])[1].backward()
        optimizer.step()
    options: dict[str, Any] = {"pillars": ("quantize",), "effort": "quick"}
    result = tauten.optimize(
        model.eval(), TEXTS, tauten.Goal(max_drop=0.5), tokenizer=byte_tokenizer(), **options
    )
    assert result.test is not None and result.test.metric == "accuracy"
    assert 0.3 < result.test.original < 1


def test_rows_without_a_batch_dimension_are_packed_on_as_batches_are() -> None:
    rows = torch.randn(40, 10, generator=torch.manual_seed(1))
    wanted = packed_on(tiny_mlp(), [rows])
    for data in (
        list(rows),
        TensorDataset(rows),
        rows.tolist(),
        rows.numpy(),
        rows.double().numpy(),
    ):
        assert same(packed_on(tiny_mlp(), data), wanted)
