"""Batches from files, which the datasets library reads."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import byte_tokenizer

from tauten.core.errors import InputError
from tauten.distributed.sources import read_batches

datasets = pytest.importorskip("datasets")
TEXTS = [f"text {number}" for number in range(7)]


def write(folder: Path, kind: str) -> Path:
    file = folder / f"rows.{kind}"
    if kind == "txt":
        file.write_text("\n".join(TEXTS))
    elif kind == "jsonl":
        file.write_text("\n".join(json.dumps({"text": text, "n": 1}) for text in TEXTS))
    else:
        datasets.Dataset.from_dict({"text": TEXTS}).to_parquet(str(file))
    return file


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["txt", "jsonl", "parquet"])
def test_rows_of_a_file_come_in_order(tmp_path: Path, kind: str) -> None:
    tokenizer: Any = byte_tokenizer()
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(0)
    batches = list(read_batches(write(tmp_path, kind), 3, tokenizer))
    assert [len(batch["input_ids"]) for batch in batches] == [3, 3, 1]
    ids = [row for batch in batches for row in batch["input_ids"].tolist()]
    assert ids == [tokenizer(text)["input_ids"] for text in TEXTS]


@pytest.mark.filterwarnings("ignore")
def test_numbers_come_as_tensors(tmp_path: Path) -> None:
    file = tmp_path / "rows.parquet"
    datasets.Dataset.from_dict({"x": [[1.0, 2.0]] * 5}).to_parquet(str(file))
    first, last = read_batches(file, 4, column="x")
    assert torch.equal(first["x"], torch.tensor([[1.0, 2.0]] * 4))
    assert len(last["x"]) == 1


@pytest.mark.filterwarnings("ignore")
def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    file = write(tmp_path, "jsonl")
    with pytest.raises(InputError, match="no column 'body'; it has text, n"):
        next(read_batches(file, 2, column="body"))
    with pytest.raises(InputError, match="is text: pass the model's tokenizer"):
        next(read_batches(file, 2))
    with pytest.raises(InputError, match="expected a file or folder of one kind"):
        next(read_batches(tmp_path / "rows.bin", 2))
