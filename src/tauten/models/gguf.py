"""GGUF files, read through transformers."""

import functools
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import gguf
import numpy as np
import transformers

from tauten.core.errors import CorruptError, InputError
from tauten.core.files import sha256_file
from tauten.core.progress import quiet_elsewhere
from tauten.models.source import Source, shared_copy


def source(file: Path) -> Source:
    """A GGUF file, dequantized to float32 in memory.

    It is loaded whole: transformers converts all tensors of a GGUF in one go.

    Raises:
        CorruptError: The file is truncated or no GGUF.
        InputError: transformers doesn't know its architecture.
    """
    reader = _reader(file)
    try:
        with quiet_elsewhere(), _read_by(reader):
            model = transformers.AutoModelForCausalLM.from_pretrained(
                file.parent, gguf_file=file.name, dtype="float32", local_files_only=True
            )
    except (ValueError, KeyError, NotImplementedError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{file}: transformers can't load this GGUF ({reason})") from None
    model.requires_grad_(False)

    def tokenizer() -> Any:
        with _read_by(_reader(file)):
            return transformers.AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)

    def save_companions(out: Path) -> None:
        model.config.save_pretrained(out)
        _plain_config(out / "config.json", type(model).__name__)
        tokenizer().save_pretrained(out)
        for licence in file.parent.glob("LICENSE*"):
            shutil.copyfile(licence, out / licence.name)

    return Source(
        name=str(file),
        kind="gguf",
        skeleton=lambda: shared_copy(model),
        fingerprint=sha256_file(file),
        size_bytes=file.stat().st_size,
        save_companions=save_companions,
        tokenizer=tokenizer,
        whole="a GGUF is converted in one go, so it is loaded whole",
    )


def _reader(file: Path) -> "_Reader":
    """Of a file that is whole.

    Raises:
        CorruptError: Its tensors reach beyond its end, or it is no GGUF.
    """
    try:
        reader = _Reader(file)
    except (ValueError, KeyError, IndexError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise CorruptError(
            f"{file}: not a whole GGUF file ({reason}); copy or download it again"
        ) from None
    if not reader.tensors:
        raise CorruptError(f"{file}: a GGUF without tensors; pass one that holds the weights")
    return reader


@contextmanager
def _read_by(reader: "_Reader") -> Iterator[None]:
    """Let transformers use one quick reader; it would make three, which take seconds each."""
    names = functools.cache(gguf.get_tensor_name_map)  # made anew for each module otherwise
    with patch.multiple(gguf, GGUFReader=lambda path: reader, get_tensor_name_map=names):
        yield


class _Reader(gguf.GGUFReader):
    """Reads fields from a plain array: of a memory map, each slice takes ten times as long."""

    def _get(self, offset: int, dtype: Any, count: int = 1, override_order: Any = None) -> Any:
        kind, plain = np.dtype(dtype), self.data.view(np.ndarray)
        values = plain[offset : offset + kind.itemsize * int(count)].view(kind)
        return values.view(kind.newbyteorder(override_order or self.byte_order))


def _plain_config(file: Path, architecture: str) -> None:
    """Name the architecture, which a GGUF's configuration lacks, and drop its GGUF marks."""
    config = json.loads(file.read_text())
    config.pop("quantization_config", None)
    config["architectures"] = [architecture]
    file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
