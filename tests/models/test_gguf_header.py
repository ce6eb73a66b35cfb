"""The head of a GGUF file is read without its vocabulary and tensors, and says as much."""

from pathlib import Path

import gguf
import pytest
import torch
import transformers

from tauten.core.errors import CorruptError
from tauten.faces import inspect_facts
from tauten.models import gguf as gguf_source
from tauten.models.gguf_header import LONG, read_header


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of one layer with a vocabulary that is long."""
    path = tmp_path_factory.mktemp("gguf") / "a.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_block_count(1)
    writer.add_feed_forward_length(64)
    writer.add_head_count(2)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_token_list([f"token {number}" for number in range(LONG + 8)])
    shapes = {"token_embd": (LONG + 8, 32), "output_norm": (32,)}
    shapes |= {f"blk.0.attn_{key}": (32, 32) for key in ("q", "k", "v", "output")}
    shapes |= {f"blk.0.{key}_norm": (32,) for key in ("attn", "ffn")}
    shapes |= {"blk.0.ffn_gate": (64, 32), "blk.0.ffn_up": (64, 32), "blk.0.ffn_down": (32, 64)}
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", torch.ones(shape).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_settings_are_those_of_the_whole_file(file: Path, tmp_path: Path) -> None:
    header = read_header(file)
    assert header.size_bytes <= file.stat().st_size
    header.write_settings(file, tmp_path / "b.gguf")
    assert len(gguf.GGUFReader(tmp_path / "b.gguf").tensors) == header.tensors
    read = [
        transformers.AutoConfig.from_pretrained(at.parent, gguf_file=at.name).to_dict()
        for at in (file, tmp_path / "b.gguf")
    ]
    for config in read:
        config.pop("_name_or_path", None)
    assert read[0] == read[1]
    assert read[0]["vocab_size"] == LONG + 8


def test_it_is_inspected_without_loading_weights(file: Path, monkeypatch) -> None:
    whole = gguf_source.source(file).skeleton()
    monkeypatch.delattr(transformers.AutoModelForCausalLM, "from_pretrained")
    facts = inspect_facts(str(file), None)
    assert facts["parameters"] == sum(p.numel() for p in whole.parameters())
    assert facts["architecture"] == type(whole).__name__
    assert facts["tied"] == [["model.embed_tokens", "lm_head"]]


@pytest.mark.parametrize("size", [0, 3, 20, 100, 5000, -1000])
def test_a_file_that_ends_early_is_refused(file: Path, tmp_path: Path, size: int) -> None:
    short = tmp_path / "short.gguf"
    short.write_bytes(file.read_bytes()[:size])
    with pytest.raises(CorruptError, match="not a whole GGUF file"):
        read_header(short)
