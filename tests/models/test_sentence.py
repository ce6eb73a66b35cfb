"""Folders of sentence-transformers, against that library."""

import importlib
import json
import logging
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import byte_tokenizer, tiny_bert

import tauten
from tauten.data.documents import Document
from tauten.data.tensors import call_model, main_output
from tauten.data.windows import encoder_batches
from tauten.models import sentence
from tauten.models.source import open_source

os.environ["HF_HUB_OFFLINE"] = "1"  # or the library asks the hub of whatever isn't in a folder
pytestmark = pytest.mark.filterwarnings("ignore")
TEXTS = [f"Document {i} tells of {w}." for i, w in enumerate(["cats", "dogs", "trees"] * 8)]
DOCUMENTS = [Document(str(number), text) for number, text in enumerate(TEXTS)]


@pytest.fixture
def library():
    return pytest.importorskip("sentence_transformers")


@pytest.fixture
def folder(tmp_path: Path, library) -> Path:
    """A tiny embedder: transformer, pooling, a dense layer, normalization."""
    tokenizer = byte_tokenizer()
    tokenizer.pad_token = "!"
    tokenizer.model_max_length = 64
    tiny_bert().save_pretrained(tmp_path / "bert")
    tokenizer.save_pretrained(tmp_path / "bert")
    parts = importlib.import_module("sentence_transformers.models")
    torch.manual_seed(1)
    modules = [
        parts.Transformer(str(tmp_path / "bert")),
        parts.Pooling(64),
        parts.Dense(64, 32),
        parts.Normalize(),
    ]
    made = library.SentenceTransformer(modules=modules, device="cpu")
    made.save_pretrained(str(tmp_path / "embedder"))
    return tmp_path / "embedder"


def embeddings(model) -> torch.Tensor:
    return torch.tensor(model.encode(TEXTS))


def test_a_folder_is_opened_as_its_library_opens_it(folder: Path, library) -> None:
    source = open_source(folder)
    assert source.kind == "sentence-transformers"
    theirs = library.SentenceTransformer(str(folder), device="cpu")
    assert torch.equal(embeddings(source.open()), embeddings(theirs))


def test_embeddings_are_the_same_wherever_the_artifact_is_loaded(
    folder: Path, tmp_path: Path, library
) -> None:
    out = tmp_path / "packed"
    made = tauten.quantize(folder, 8, data=TEXTS, out=out)
    assert isinstance(made, library.SentenceTransformer)
    original = embeddings(library.SentenceTransformer(str(folder), device="cpu"))
    assert (embeddings(made) * original).sum(1).min() > 0.99
    assert torch.equal(embeddings(tauten.load(out)), embeddings(made))
    theirs = library.SentenceTransformer(str(out), device="cpu", trust_remote_code=True)
    assert torch.equal(embeddings(theirs), embeddings(made))
    with pytest.raises(ValueError, match="trust_remote_code"):  # never with weights of its own
        library.SentenceTransformer(str(out), device="cpu")


def test_weights_of_all_modules_stand_in_one_file(folder: Path, tmp_path: Path) -> None:
    tauten.quantize(folder, 8, out=tmp_path / "packed")
    files = [
        f.relative_to(tmp_path / "packed") for f in (tmp_path / "packed").rglob("*.safetensors")
    ]
    assert [str(file) for file in files] == ["model.safetensors"]


def test_a_model_in_memory_takes_texts(folder: Path, library) -> None:
    model = library.SentenceTransformer(str(folder), device="cpu")
    before = embeddings(model)
    made = tauten.quantize(model, technique=tauten.GPTQ(4, group_size=32), data=TEXTS)
    assert (embeddings(made) * before).sum(1).min() > 0.9
    assert torch.equal(embeddings(model), before)
    with pytest.raises(tauten.InputError, match="save_pretrained"):
        made.save(str(folder.with_name("never")))


def test_what_counts_of_an_answer_is_its_embedding(folder: Path) -> None:
    source = open_source(folder)
    model, (batch,) = (
        source.open(),
        encoder_batches(DOCUMENTS[:9], source.tokenizer(), source.open()),
    )
    with torch.no_grad():
        found = main_output(call_model(model, batch))
    assert torch.allclose(found, embeddings(model)[:9], atol=1e-6)
    assert set(batch) <= {"input_ids", "attention_mask", "token_type_ids"}  # it wasn't written into


def test_the_search_takes_texts(folder: Path) -> None:
    result = tauten.optimize(folder, TEXTS, tauten.Goal(max_drop=0.5), effort="quick")
    assert embeddings(result.model).shape == (len(TEXTS), 32)


def test_no_weights_are_invented(folder: Path) -> None:
    file = folder / "model.safetensors"
    state = {k: v for k, v in load_file(file).items() if not k.startswith("pooler.")}
    save_file(state, file, {"format": "pt"})
    assert open_source(folder).fingerprint == open_source(folder).fingerprint
    state.pop("encoder.layer.1.output.dense.weight")
    save_file(state, file, {"format": "pt"})
    with pytest.raises(tauten.InputError, match=r"lacks tensor 'encoder\.layer\.1\.output"):
        open_source(folder)


def test_code_of_a_folder_is_never_run(folder: Path) -> None:
    modules = json.loads((folder / "modules.json").read_text())
    modules[0]["type"] = "os.path.join"
    (folder / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(tauten.InputError, match=r"'os\.path\.join' is code of that folder"):
        open_source(folder)


def test_without_the_library_the_transformer_alone_is_opened(
    folder: Path, tmp_path: Path, library, monkeypatch, caplog
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(sentence, "is_installed", lambda: False)
        with caplog.at_level(logging.WARNING, "tauten"):
            made = tauten.quantize(folder, 8, out=tmp_path / "packed")
        assert "as its transformer alone" in caplog.text and sentence.REMEDY in caplog.text
    assert type(made).__name__ == type(tauten.load(tmp_path / "packed")).__name__ == "BertModel"
    head = "2_Dense/model.safetensors"
    assert (tmp_path / "packed" / head).read_bytes() == (folder / head).read_bytes()


def test_an_artifact_asks_for_the_library(folder: Path, tmp_path: Path, monkeypatch) -> None:
    tauten.quantize(folder, 8, out=tmp_path / "packed")
    monkeypatch.setattr(sentence, "is_installed", lambda: False)
    with pytest.raises(tauten.InputError, match="pip install"):
        tauten.load(tmp_path / "packed")
