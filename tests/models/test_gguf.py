"""A GGUF file is read in one go, and inspected without its vocabulary and tensors."""

import random
import struct
from pathlib import Path

import gguf
import pytest
import torch
import transformers

from tauten.core.errors import CorruptError, InputError
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


ODD_NUMBERS = (0, 1, 2**7, 2**15, 2**31 - 1, 2**32 - 1, 2**40, 2**63, 2**64 - 1)


def replaced(content: bytes, place: int, value: int, length: int) -> bytes:
    return (
        content[:place]
        + (value % 256**length).to_bytes(length, "little")
        + content[place + length :]
    )


@pytest.mark.filterwarnings("ignore")  # transformers' own, of odd settings
def test_odd_numbers_in_a_header_are_refused_or_read(file: Path, tmp_path: Path) -> None:
    content, odd = file.read_bytes(), tmp_path / "odd.gguf"
    words = content.index(b"tokenizer.ggml.tokens") + 100  # the vocabulary is long, all else short
    refused = 0
    for seed in range(60):
        chance = random.Random(seed)
        length, value = chance.choice((1, 4, 8)), chance.choice(ODD_NUMBERS)
        odd.write_bytes(replaced(content, chance.randrange(words), value, length))
        try:
            gguf_source.source(odd)
        except InputError as error:
            refused += 1
            assert "odd.gguf" in str(error) and "\n" not in str(error), seed
    assert refused > 10


@pytest.mark.parametrize(
    ("after", "skip", "value", "length"),
    [
        (b"tokenizer.ggml.tokens", 8, 2**40, 8),  # items of a list
        (b"tokenizer.ggml.tokens", 8, 2**22, 8),
        (b"general.name", 4, 10**8, 8),  # bytes of a text
        (b"llama.block_count", 4, 10**7, 4),
        (b"llama.embedding_length", 4, 2**31, 4),
        (b"blk.0.attn_q.weight", 4, 2**62, 8),  # of a dimension
        (b"blk.0.attn_q.weight", 0, 2**31, 4),  # dimensions
        (b"blk.0.attn_q.weight", 20, 99, 4),  # type
        (b"GGUF", 4, 2**60, 8),  # tensors
        (b"GGUF", 12, 2**60, 8),  # settings
    ],
)
def test_a_header_that_claims_too_much_is_refused(
    file: Path, tmp_path: Path, after: bytes, skip: int, value: int, length: int
) -> None:
    content = file.read_bytes()
    place = content.index(after) + len(after) + skip
    (tmp_path / "odd.gguf").write_bytes(replaced(content, place, value, length))
    with pytest.raises(CorruptError, match=r"odd\.gguf"):
        gguf_source.source(tmp_path / "odd.gguf")


def test_a_value_that_is_not_finite_is_refused(file: Path, tmp_path: Path) -> None:
    poisoned = tmp_path / "nan.gguf"
    poisoned.write_bytes(file.read_bytes()[:-4] + struct.pack("<f", torch.nan))
    message = r"nan.gguf: tensor 'model.layers.0.mlp.down_proj.weight' .* infinity in row 31"
    with pytest.raises(CorruptError, match=message):
        gguf_source.source(poisoned).skeleton()
