"""GGUF files, read through transformers."""

import contextlib
import functools
import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import transformers
from accelerate.big_modeling import init_empty_weights
from torch import nn

from tauten.core.errors import InputError
from tauten.core.files import sha256_file
from tauten.core.progress import quiet_elsewhere
from tauten.models.experts import unfuse_experts
from tauten.models.gguf_header import read_header
from tauten.models.source import Source, shared_copy


def source(file: Path) -> Source:
    """A GGUF file, dequantized to float32 in memory once its weights are needed.

    It is loaded whole: transformers converts all tensors of a GGUF in one go.

    Raises:
        CorruptError: The file is truncated or no GGUF.
        InputError: transformers doesn't know its architecture.
    """
    config = _config(file)

    @functools.cache
    def loaded() -> Any:
        with quiet_elsewhere(), _refused(file):
            model = transformers.AutoModelForCausalLM.from_pretrained(
                file.parent, gguf_file=file.name, dtype="float32", local_files_only=True
            )
        model.requires_grad_(False)
        return model

    def outline() -> nn.Module:
        with init_empty_weights(include_buffers=False):
            model: Any = transformers.AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
        model.tie_weights()
        return unfuse_experts(model.eval())

    def tokenizer() -> Any:
        return transformers.AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)

    def save_companions(out: Path) -> None:
        loaded().config.save_pretrained(out)
        _plain_config(out / "config.json", type(loaded()).__name__)
        tokenizer().save_pretrained(out)
        for licence in file.parent.glob("LICENSE*"):
            shutil.copyfile(licence, out / licence.name)

    return Source(
        name=str(file),
        kind="gguf",
        skeleton=lambda: shared_copy(loaded()),
        outline=outline,
        fingerprint=sha256_file(file),
        size_bytes=file.stat().st_size,
        save_companions=save_companions,
        tokenizer=tokenizer,
        whole="a GGUF is converted in one go, so it is loaded whole",
    )


def _config(file: Path) -> Any:
    """The configuration, from a copy of the file without vocabulary and tensors."""
    header = read_header(file)
    with tempfile.TemporaryDirectory(prefix="tauten-") as folder, _refused(file):
        header.write_settings(file, Path(folder) / file.name)
        return transformers.AutoConfig.from_pretrained(folder, gguf_file=file.name)


@contextlib.contextmanager
def _refused(file: Path) -> Iterator[None]:
    """Say which file transformers can't load."""
    try:
        yield
    except (ValueError, KeyError, NotImplementedError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{file}: transformers can't load this GGUF ({reason})") from None


def _plain_config(file: Path, architecture: str) -> None:
    """Name the architecture, which a GGUF's configuration lacks, and drop its GGUF marks."""
    config = json.loads(file.read_text())
    config.pop("quantization_config", None)
    config["architectures"] = [architecture]
    file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
