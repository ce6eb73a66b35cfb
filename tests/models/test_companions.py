"""What goes with a model's weights, what stays behind, and what of it is damaged."""

import json
import logging
import re
from pathlib import Path

import pytest
import torch
import transformers
from tiny_models import byte_tokenizer, tiny_bert, tiny_llama
from transformers import models

import tauten
from tauten.distributed.blueprint import blueprint, unpacked
from tauten.models.companions import copy_companions, left_behind, module_folders
from tauten.models.huggingface import tokenizer_loader
from tauten.models.source import open_source

CARRIED = (
    *("config.json", "generation_config.json", "chat_template.jinja", "chat_template.json"),
    *("additional_chat_templates/tool_use.jinja", "preprocessor_config.json", "source.spm"),
    *("processor_config.json", "video_preprocessor_config.json", "tokenizer.json", "LICENSE.md"),
    *("sentencepiece.bpe.model", "qwen.tiktoken", "modules.json", "1_Pooling/config.json"),
    *("vocab.bpe", "tokenizer.model.v3", "2_Dense/model.safetensors", "tekken.json", "NOTICE"),
)
LEFT = ("README.md", "modeling.py", "onnx/model.onnx", "optimizer.pt", "pytorch_model.bin")
MODULES = [{"path": ""}, {"path": "1_Pooling"}, {"path": "2_Dense"}, {"path": "3_Normalize"}]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "model"
    tiny_llama().save_pretrained(made)
    byte_tokenizer().save_pretrained(made)
    for name in (*CARRIED, *LEFT):
        (made / name).parent.mkdir(exist_ok=True)
        if not (made / name).exists():
            (made / name).write_text("{}")
    (made / "modules.json").write_text(json.dumps(MODULES))
    return made


def test_what_goes_with_a_model_is_copied_byte_for_byte(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    copy_companions(folder, out)
    copied = {str(file.relative_to(out)) for file in out.rglob("*") if file.is_file()}
    assert set(CARRIED) <= copied
    assert not copied & {*LEFT, "model.safetensors", "model.safetensors.index.json"}
    assert all((out / name).read_bytes() == (folder / name).read_bytes() for name in copied)


def test_what_stays_behind_is_named_in_one_line(folder: Path, tmp_path: Path, caplog) -> None:
    names = left_behind(folder)
    assert names == "README.md, modeling.py, onnx/, optimizer.pt, pytorch_model.bin"
    (folder / "modules.json").unlink()  # so that it is a language model and nothing else
    with caplog.at_level(logging.INFO, "tauten"):
        tauten.quantize(folder, 8, out=tmp_path / "packed")
    (said,) = (r.getMessage() for r in caplog.records if "not copied along" in r.getMessage())
    assert "1_Pooling/, 2_Dense/, README.md" in said


def test_files_of_every_tokenizer_of_transformers_are_carried(tmp_path: Path) -> None:
    names: set[str] = set()
    for file in Path(models.__path__[0]).glob("*/tokenization_*.py"):
        for found in re.findall(r"VOCAB_FILES_NAMES = (\{[^}]*\})", file.read_text()):
            names |= set(re.findall(r':\s*"([^"]+)"', found))
    assert len(names) > 15
    for name in names:
        (tmp_path / name).write_text("{}")
    assert left_behind(tmp_path) == ""


def test_templates_of_an_artifact_are_those_of_the_model(folder: Path, tmp_path: Path) -> None:
    for name in ("modules.json", "chat_template.json", "processor_config.json"):
        (folder / name).unlink()
    (folder / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    (folder / "additional_chat_templates/tool_use.jinja").write_text("tool {{ messages }}")
    tauten.quantize(folder, 8, out=tmp_path / "packed")
    chats = [
        transformers.AutoTokenizer.from_pretrained(place).chat_template
        for place in (folder, tmp_path / "packed")
    ]
    assert chats[0] == chats[1] and set(chats[0]) == {"default", "tool_use"}


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12345\n"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer.json", "", r"tokenizer\.json is empty"),
        ("tokenizer.json", '{"model": [1, 2', r"tokenizer\.json: damaged"),
        ("config.json", "", r"config\.json is empty"),
        ("config.json", '{"model_type": "lla', r"config\.json: damaged"),
        ("tokenizer.model", POINTER, r"tokenizer\.model is a git-lfs pointer.*git lfs pull"),
        ("model.safetensors", POINTER, r"model\.safetensors is a git-lfs pointer"),
        ("config.json", POINTER, r"config\.json is a git-lfs pointer"),
    ],
)
def test_damaged_files_are_named(tmp_path: Path, name: str, content: str, message: str) -> None:
    tiny_bert().save_pretrained(tmp_path)
    (tmp_path / name).write_text(content)
    with pytest.raises(tauten.InputError, match=message) as caught:
        open_source(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_damaged_tokenizer_is_named_when_it_is_needed(tmp_path: Path) -> None:
    tiny_llama().save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"model": {}}')
    with pytest.raises(tauten.InputError, match="can't load its tokenizer"):
        tauten.quantize(tmp_path, 4, data=["some text", "and more of it"])


def test_a_tokenizer_that_reads_no_text_is_refused_when_it_is_loaded(tmp_path: Path) -> None:
    byte_tokenizer().save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    wrong = json.dumps({**settings, "model_max_length": [1]})
    (tmp_path / "tokenizer_config.json").write_text(wrong)
    load = tokenizer_loader(tmp_path)
    assert load is not None
    with pytest.raises(tauten.InputError, match="can't load its tokenizer"):
        load()


@pytest.mark.parametrize("path", ["../secret", "/etc", "1_Pooling/../.."])
def test_modules_outside_the_folder_are_refused(tmp_path: Path, path: str) -> None:
    (tmp_path / "modules.json").write_text(json.dumps([{"path": path}]))
    with pytest.raises(tauten.InputError, match="isn't in that folder"):
        module_folders(tmp_path)


def test_all_of_a_folder_reaches_another_machine(folder: Path, tmp_path: Path) -> None:
    there = unpacked(blueprint(folder, shared_folders=False)["files"])
    arrived = {str(f.relative_to(there)): f.read_bytes() for f in there.rglob("*") if f.is_file()}
    assert {*CARRIED, "model.safetensors"} <= set(arrived)
    assert all((folder / name).read_bytes() == content for name, content in arrived.items())
    with pytest.raises(tauten.InputError, match="expected one in its folder"):
        unpacked({"../escaped.json": torch.zeros(1, dtype=torch.uint8)})
