"""A GGUF file is read in one go, and inspected without its vocabulary and tensors."""

import struct
from pathlib import Path

import gguf
import pytest
import torch
import transformers

from tauten.core.errors import CorruptError
from tauten.faces_inspect import inspect_facts
from tauten.models import gguf as gguf_source
from tauten.models.gguf import LONG


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


def test_settings_are_those_of_the_whole_file(file: Path) -> None:
    expected = transformers.AutoConfig.from_pretrained(file.parent, gguf_file=file.name)
    found = gguf_source.source(file).outline().config
    assert found.vocab_size == expected.vocab_size == LONG + 8
    assert found.to_diff_dict() == expected.to_diff_dict()


@pytest.mark.parametrize("endian", gguf.GGUFEndian)
def test_fields_are_read_as_by_the_reader_of_gguf(tmp_path: Path, endian: gguf.GGUFEndian) -> None:
    path = tmp_path / "a.gguf"
    writer = gguf.GGUFWriter(path, "llama", endianess=endian)
    for key, values in {"words": ["a", "", "long"], "floats": [0.5, 2.0], "flags": [True]}.items():
        writer.add_array(f"test.{key}", values)
    writer.add_array("test.nested", [[1, 2], [3, 4]])
    writer.add_tensor("a.weight", torch.ones(2, 2).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    ours, theirs = gguf_source._reader(path), gguf.GGUFReader(path)
    assert list(ours.fields) == list(theirs.fields)
    for key, field in theirs.fields.items():
        assert ours.fields[key].contents() == field.contents()
        assert ours.fields[key].types == field.types


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
        gguf_source.source(short)


def test_a_value_that_is_not_finite_is_refused(file: Path, tmp_path: Path) -> None:
    poisoned = tmp_path / "nan.gguf"
    poisoned.write_bytes(file.read_bytes()[:-4] + struct.pack("<f", torch.nan))
    message = r"nan.gguf: tensor 'model.layers.0.mlp.down_proj.weight' .* infinity in row 31"
    with pytest.raises(CorruptError, match=message):
        gguf_source.source(poisoned).skeleton()
