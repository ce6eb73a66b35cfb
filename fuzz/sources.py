"""Readers of models that others made: Hugging Face folders, GGUF files, tokenizers."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from fuzz import models
from fuzz.reader import Reader, plain
from tauten.models.source import open_source

GGUF = "tiny.gguf"
_READS = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


def source_readers() -> Iterator[Reader]:
    """All of them."""
    index = "model.safetensors.index.json"
    yield Reader("hf folder", _make_folder, _run)
    yield Reader("hf settings", _make_folder, _run, ("config.json", "generation_config.json"))
    yield Reader("hf weights", _make_folder, _outline, (index, "model-00001-of-00002.safetensors"))
    yield Reader("hf tokenizer", _make_folder, _tokens, _READS)
    yield Reader("gguf", _make_gguf, _run)
    yield Reader("gguf header", _make_gguf, _outline)


def _make_folder(place: Path) -> None:
    models.llama_folder(place)


def _make_gguf(place: Path) -> None:
    place.mkdir()
    models.gguf_file(place / GGUF)


def _path(place: Path) -> Path:
    return place / GGUF if (place / GGUF).exists() else place


@torch.no_grad()
def _run(place: Path) -> Any:
    source = open_source(_path(place))
    model: Any = source.open()
    tokens = models.TOKENS % model.config.vocab_size
    return plain([model(tokens, use_cache=False).logits, source.fingerprint, source.size_bytes])


def _outline(place: Path) -> Any:
    """What `tauten inspect` reads: shapes, and nothing of the weights."""
    source = open_source(_path(place))
    model = source.outline() if source.outline else source.skeleton()
    if source.reader is not None:
        source.loader(model, ())
    return [(name, tuple(p.shape)) for name, p in model.named_parameters()]


def _tokens(place: Path) -> Any:
    source = open_source(place)
    assert source.tokenizer is not None, "it was written with one"
    return models.read_by(source.tokenizer)
