"""GGUF files, read through transformers."""

import contextlib
import functools
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import gguf
import numpy as np
import torch
import transformers
from accelerate.big_modeling import init_empty_weights
from gguf import GGUFValueType
from torch import nn

from tauten.core.dtypes import default_dtype
from tauten.core.errors import CorruptError, InputError, first_line
from tauten.core.files import sha256_file
from tauten.core.progress import quiet_elsewhere
from tauten.models.bounds import Bounds
from tauten.models.experts import unfuse_experts
from tauten.models.source import Source, check_weights, shared_copy

LONG = 4096  # a list with more items is a vocabulary, not a setting
# What a file may hold; each takes about 100 bytes of memory, and a tensor's name about 2,000.
MOST_ITEMS, MOST_ENTRIES, MOST_CHARACTERS = 2**21, 2**17, 2**20
MOST_DEPTH = 8  # of lists in lists


def source(file: Path) -> Source:
    """A GGUF file, dequantized to float32 in memory once its weights are needed.

    It is loaded whole: transformers converts all tensors of a GGUF in one go.

    Raises:
        CorruptError: The file is truncated or no GGUF.
        InputError: transformers doesn't know its architecture.
    """
    reader = _settings(_reader(file))
    bounds = Bounds(len(reader.tensors), file.stat().st_size)
    bounds.check_numbers(reader.numbers(), str(file))
    with _read_by(reader), _refused(file):
        config = transformers.AutoConfig.from_pretrained(file.parent, gguf_file=file.name)

    @functools.cache
    def loaded() -> Any:
        with quiet_elsewhere(), _read_by(_reader(file)), _refused(file):
            model = transformers.AutoModelForCausalLM.from_pretrained(
                file.parent, gguf_file=file.name, dtype="float32", local_files_only=True
            )
        check_weights(model, str(file))
        model.requires_grad_(False)
        return model

    def outline() -> nn.Module:
        with default_dtype(torch.float32), init_empty_weights(include_buffers=False):
            model: Any = transformers.AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
        model.tie_weights()
        return unfuse_experts(model.eval())

    bounds.check_model(outline, str(file))

    def tokenizer() -> Any:
        with _read_by(_reader(file)), _refused(file):
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


@contextlib.contextmanager
def _refused(file: Path) -> Iterator[None]:
    """Say which file transformers can't load."""
    try:
        yield
    except Exception as error:  # it may raise anything of odd values
        reason = first_line(error)
        raise InputError(f"{file}: transformers can't load this GGUF ({reason})") from None


def _reader(file: Path) -> "_Reader":
    """Of a file that is whole.

    Raises:
        CorruptError: Its tensors reach beyond its end, or it is no GGUF.
    """
    try:
        reader = _Reader(file)
    except (ValueError, LookupError, OSError, ArithmeticError) as error:
        reason = first_line(error)
        raise CorruptError(
            f"{file}: not a whole GGUF file ({reason}); copy or download it again"
        ) from None
    if not reader.tensors:
        raise CorruptError(f"{file}: a GGUF without tensors; pass one that holds the weights")
    return reader


@contextlib.contextmanager
def _read_by(reader: "_Reader") -> Iterator[None]:
    """Let transformers use one quick reader; it would make three, which take seconds each."""
    names = functools.cache(gguf.get_tensor_name_map)  # made anew for each module otherwise
    with patch.multiple(gguf, GGUFReader=lambda path: reader, get_tensor_name_map=names):
        yield


def _settings(reader: "_Reader") -> "_Reader":
    """Write zeros over its vocabulary: of that, the configuration needs the length alone."""
    zero = [np.zeros(1, np.uint32)]
    for name, field in reader.fields.items():
        if len(field.data) > LONG:
            places, types = [0] * len(field.data), [GGUFValueType.UINT32]
            reader.fields[name] = field._replace(parts=zero, data=places, types=types)
    return reader


class _Reader(gguf.GGUFReader):
    """Reads fields from a plain array, and the items of a list in one go.

    gguf's own takes several slices of a memory map for each: a minute for a large vocabulary.
    What the file claims to hold is compared with its length and with bounds before it is read.
    """

    _items = _depth = 0

    def numbers(self) -> dict[str, Any]:
        """Settings that are one number, by name."""
        kinds = self.gguf_scalar_to_np.keys()
        single = {n: f for n, f in self.fields.items() if len(f.data) == 1 and f.types[0] in kinds}
        return {name: field.parts[field.data[0]][0].item() for name, field in single.items()}

    def _get(self, offset: int, dtype: Any, count: int = 1, override_order: Any = None) -> Any:
        kind, plain = np.dtype(dtype), self.data.view(np.ndarray)
        end = int(offset) + kind.itemsize * int(count)
        if end > len(plain):
            raise ValueError("it reaches beyond its end")
        values = plain[offset:end].view(kind)
        return values.view(kind.newbyteorder(override_order or self.byte_order))

    def _get_str(self, offset: int) -> tuple[Any, Any]:
        length = self._get(offset, np.uint64)
        if length[0] > MOST_CHARACTERS:
            raise ValueError(f"a text of {length[0]} bytes: expected at most {MOST_CHARACTERS}")
        return length, self._get(offset + 8, np.uint8, length[0])

    def _build_fields(self, offs: int, count: int) -> int:
        if count > MOST_ENTRIES:
            raise ValueError(f"{count} settings: expected at most {MOST_ENTRIES}")
        return super()._build_fields(offs, int(count))

    def _build_tensor_info(self, offs: int, count: int) -> tuple[int, list[Any]]:
        if count > MOST_ENTRIES:
            raise ValueError(f"{count} tensors: expected at most {MOST_ENTRIES}")
        return super()._build_tensor_info(offs, int(count))

    def _get_field_parts(
        self, orig_offs: int, raw_type: int
    ) -> tuple[int, list[Any], list[int], list[GGUFValueType]]:
        if raw_type == GGUFValueType.ARRAY:
            self._items += int(self._get(orig_offs + 4, np.uint64)[0])
            if self._items > MOST_ITEMS:
                raise ValueError(f"lists of {self._items} items: expected at most {MOST_ITEMS}")
        self._depth += 1
        if self._depth > MOST_DEPTH:
            raise ValueError(f"lists in lists, more than {MOST_DEPTH} deep")
        try:
            return self._parts(orig_offs, raw_type)
        finally:
            self._depth -= 1

    def _parts(
        self, orig_offs: int, raw_type: int
    ) -> tuple[int, list[Any], list[int], list[GGUFValueType]]:
        kind = self._get(orig_offs, np.uint32)[0] if raw_type == GGUFValueType.ARRAY else None
        if kind != GGUFValueType.STRING and kind not in self.gguf_scalar_to_np:
            return super()._get_field_parts(orig_offs, raw_type)
        count, start = int(self._get(orig_offs + 4, np.uint64)[0]), orig_offs + 12
        if kind == GGUFValueType.STRING:
            parts, end = self._strings(count, start)
        else:
            numbers = self._get(start, self.gguf_scalar_to_np[kind], count)
            parts, end = list(numbers.reshape(-1, 1)), start + numbers.nbytes
        types = [GGUFValueType.ARRAY, GGUFValueType(kind)]
        return end - orig_offs, parts, list(range(len(parts))), types

    def _strings(self, count: int, at: int) -> tuple[list[Any], int]:
        """The bytes of each, and where the last one ends."""
        plain, strings = self.data.view(np.ndarray), []
        length = np.dtype(np.uint64).newbyteorder(self.byte_order)
        for _ in range(count):
            start = at + 8
            if start > len(plain):
                raise ValueError("a list reaches beyond its end")
            at = start + int(plain[at:start].view(length)[0])
            strings.append(plain[start:at])
        return strings, at


def _plain_config(file: Path, architecture: str) -> None:
    """Name the architecture, which a GGUF's configuration lacks, and drop its GGUF marks."""
    config = json.loads(file.read_text())
    config.pop("quantization_config", None)
    config["architectures"] = [architecture]
    file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
