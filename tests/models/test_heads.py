"""Folders whose configuration says otherwise than their weights, against transformers."""

import json
import logging
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tiny_models import VOCABULARY, tiny_bert, tiny_llama
from torch import nn

import tauten
from tauten.data.tensors import main_output
from tauten.models.source import open_source

TOKENS = torch.arange(20)[None]


def run(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return main_output(model(TOKENS))


def tiny_masked() -> nn.Module:
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
    config = transformers.BertConfig(vocab_size=VOCABULARY, num_attention_heads=4, **sizes)
    return transformers.BertForMaskedLM(config).eval()


def saved(model: nn.Module, folder: Path, **config: object) -> Path:
    model.save_pretrained(folder)
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | config))
    return folder


def opened(folder: Path, caplog: pytest.LogCaptureFixture) -> tuple[nn.Module, str]:
    """The model of a folder, and what was said of it; loaded from an artifact it is of the same
    class and says the same."""
    caplog.clear()
    with caplog.at_level(logging.INFO, "tauten.models.heads"):
        model = open_source(folder).open()
        said = "\n".join(r.getMessage() for r in caplog.records)
    out = folder.with_name(folder.name + "-packed")
    tauten.quantize(folder, 8, out=out)
    again = tauten.load(out)
    assert type(again) is type(model)
    assert (run(again) - run(model)).norm() < 0.05 * run(model).norm()
    return model, said


@pytest.mark.parametrize("named", ["BertForMaskedLM", "BertForSequenceClassification"])
def test_a_head_without_weights_is_left_out(tmp_path: Path, caplog, named: str) -> None:
    folder = saved(tiny_bert(), tmp_path / "m", architectures=[named])
    model, said = opened(folder, caplog)
    assert type(model) is transformers.BertModel
    assert torch.equal(run(model), run(tiny_bert()))
    assert named in said and "opened as BertModel" in said
    assert len(said.splitlines()) == 1


def test_a_body_without_its_untied_head(tmp_path: Path, caplog) -> None:
    body = tiny_llama(tied=False).model
    names = {"architectures": ["LlamaForCausalLM"], "tie_word_embeddings": False}
    model, said = opened(saved(body, tmp_path / "m", **names), caplog)
    assert type(model) is transformers.LlamaModel and "lm_head.weight" in said
    assert torch.equal(run(model), run(body))


def test_a_stored_head_that_the_named_class_lacks_is_named(tmp_path: Path, caplog) -> None:
    whole = tiny_masked()
    folder = saved(whole, tmp_path / "m", architectures=["BertModel"])
    model, said = opened(folder, caplog)
    assert model.pooler is None  # it isn't stored, and none is invented
    assert torch.equal(run(model), run(whole.bert))
    assert "opened without its pooler" in said
    assert "cls.predictions.bias" in said and "BertModel has no place for" in said


def test_half_a_head_is_damage(tmp_path: Path) -> None:
    folder = saved(tiny_masked(), tmp_path / "m")
    file = folder / "model.safetensors"
    state = load_file(file)
    del state["cls.predictions.transform.dense.weight"]
    save_file(state, file, {"format": "pt"})
    with pytest.raises(tauten.InputError, match=r"lacks tensor 'cls\.predictions\.transform"):
        open_source(folder)


def test_tables_that_have_parted_are_both_read(tmp_path: Path, caplog) -> None:
    folder = saved(tiny_llama(tied=False), tmp_path / "m", tie_word_embeddings=True)
    reference = transformers.LlamaForCausalLM.from_pretrained(folder).eval()
    model, said = opened(folder, caplog)
    assert torch.equal(run(model), run(reference))
    assert torch.equal(run(model), run(tiny_llama(tied=False)))
    assert "'lm_head.weight' differ" in said and "opened untied" in said


def test_tied_tables_that_are_stored_twice_stay_one(tmp_path: Path, caplog) -> None:
    folder = saved(tiny_llama(), tmp_path / "m")
    file = folder / "model.safetensors"
    state = load_file(file)
    state["lm_head.weight"] = state["model.embed_tokens.weight"].clone()
    save_file(state, file, {"format": "pt"})
    model, said = opened(folder, caplog)
    assert model.lm_head.weight is model.model.embed_tokens.weight and not said
