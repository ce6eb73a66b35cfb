"""`save_pretrained` of packed models writes nothing that loads as something else."""

import copy
import pickle
from pathlib import Path

import pytest
from tiny_models import tiny_llama

import tauten


def test_packed_models_refuse_save_pretrained_and_say_what_to_call(tmp_path: Path) -> None:
    out = tmp_path / "packed"
    made = tauten.quantize(tiny_llama(), 8, out=out)
    for model in (
        made,
        tauten.load(out, model=tiny_llama()),
        tauten.quantize(tiny_llama(), 8),
        copy.deepcopy(made),
        pickle.loads(pickle.dumps(made)),
    ):
        with pytest.raises(tauten.InputError, match=r"out=FOLDER.*tauten\.load"):
            model.save_pretrained(tmp_path / "plain")
    assert not (tmp_path / "plain").exists()


def test_a_packed_table_gets_no_rows() -> None:
    for made in (tauten.quantize(tiny_llama(), 8), copy.deepcopy(tauten.quantize(tiny_llama(), 8))):
        with pytest.raises(tauten.InputError, match="resize the model before it is packed"):
            made.resize_token_embeddings(300)
    unpacked = tauten.quantize(tiny_llama(tied=False), 8, where="*mlp*")
    assert unpacked.resize_token_embeddings(300).weight.shape[0] == 300


def test_models_without_packed_layers_save_as_ever(tmp_path: Path) -> None:
    tiny_llama().save_pretrained(tmp_path / "plain")
    assert (tmp_path / "plain" / "config.json").is_file()
