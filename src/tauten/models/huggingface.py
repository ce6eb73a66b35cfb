"""Hugging Face folders and hub ids."""

import copy
import functools
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate.big_modeling import init_empty_weights
from torch import nn
from typing_extensions import NotRequired, TypedDict

from tauten.core.description import at_least
from tauten.core.digests import digest_of, file_digests
from tauten.core.dtypes import default_dtype
from tauten.core.errors import CorruptError, InputError, first_line
from tauten.core.files import write_json
from tauten.core.printing import logger
from tauten.models.companions import (
    PATTERNS,
    carried,
    check_folder,
    copy_companions,
    left_behind,
    read_json,
)
from tauten.models.experts import unfuse_experts
from tauten.models.heads import POOLING, fitted
from tauten.models.reader import SafetensorsReader, open_folder
from tauten.models.source import Source, shared_copy

CONFIG = "config.json"
VOCABULARIES = ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "vocab.json", "bpe.codes")
_log = logger(__name__)


@at_least
class _Config(TypedDict):
    """What is looked at here of `config.json`; the rest is for transformers."""

    architectures: NotRequired[list[str] | None]
    quantization_config: NotRequired[dict[str, Any] | None]


def source(folder: Path) -> Source:
    """A folder with config.json and safetensors, read as transformers reads it.

    Raises:
        InputError: It isn't such a folder, or its architecture isn't one of transformers' own.
        CorruptError: A file is damaged or a tensor is missing.
    """
    if not (folder / CONFIG).is_file():
        raise InputError(f"{folder}: has no {CONFIG}; pass a Hugging Face model folder")
    reader = open_folder(folder)
    config = read_config(folder, reader)
    fit = fitted(config, reader, folder, skeleton_builder)
    build = skeleton_builder(fit.config, folder)
    with_reader: SafetensorsReader | None = reader
    whole = ""
    if fit.loaded is not None:
        # transformers renames or merges this architecture's tensors while loading.
        whole = "transformers converts this architecture's tensors, so it is loaded whole"
        _log.warning("%s: %s", folder, whole)
        loaded = shared_copy(fit.loaded.eval())
        build, with_reader = (lambda: shared_copy(loaded)), None

    def save_companions(out: Path) -> None:
        copy_companions(folder, out)
        if fit.changes:
            raw = read_json(out / CONFIG)
            write_json(out / CONFIG, raw | fit.changes)

    return Source(
        name=str(folder),
        kind="huggingface",
        skeleton=build,
        identify=functools.cache(lambda: identity(folder, reader.files)),
        size_bytes=reader.size_bytes,
        reader=with_reader,
        base_prefix=fit.prefix,
        save_companions=save_companions,
        tokenizer=tokenizer_loader(folder),
        whole=whole,
        left_behind=left_behind(folder),
    )


def read_config(folder: Path, reader: SafetensorsReader | None = None) -> Any:
    """The configuration of a folder, checked to be one that can be built without remote code.

    Args:
        folder: Of the model.
        reader: Of its weights, to compare with; None where the configuration is our own.
    """
    file = folder / CONFIG
    check_folder(folder)
    raw = read_json(file, _Config)
    if kernels := _named_kernels(raw):
        raise InputError(
            f"{file} names {kernels[0]!r}, code of the hub, which is never run: delete it"
        )
    if reader is not None:
        reader.bounds.check_numbers(raw, str(file))
    try:
        config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # its code may raise anything of odd values
        reason = first_line(error)
        raise InputError(f"{file}: transformers can't read this configuration ({reason})") from None
    if raw.get("quantization_config"):
        method = raw["quantization_config"].get("quant_method", "unknown")
        raise InputError(f"{folder} is already quantized ({method}); pass the original model")
    return config


def skeleton_builder(config: Any, where: Path) -> Callable[[], nn.Module]:
    """A function that builds the model of a configuration with empty parameters.

    Args:
        config: Of the model.
        where: Folder that may say how the model generates, or a file, for messages.
    """
    names = config.architectures or []
    found = (getattr(transformers, name, None) for name in names)
    model_class = next((kind for kind in found if _is_architecture(kind)), None)
    if model_class is None:
        named = ", ".join(names) or "none"
        raise InputError(
            f"{where}: unknown architecture ({named}); transformers {transformers.__version__} "
            "doesn't have it and remote code is never run: pass the nn.Module instead"
        )

    generation = _generation_config(where)
    options = {POOLING: False} if getattr(config, POOLING, None) is False else {}

    def build() -> nn.Module:
        with default_dtype(torch.float32), init_empty_weights(include_buffers=False):
            # Of its own: a surgery on one skeleton must not change the configuration of the next.
            model: Any = model_class(copy.deepcopy(config), **options)
        model.tie_weights()
        if generation is not None and model.can_generate():
            model.generation_config = copy.deepcopy(generation)
        return unfuse_experts(model.eval())

    return build


def _is_architecture(kind: Any) -> bool:
    """Whether what transformers has under a name is a model: a configuration may name anything."""
    return isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel)


def _named_kernels(raw: Any) -> list[str]:
    """Kernels that a configuration names; transformers would fetch and run them."""
    if not isinstance(raw, dict):
        return []
    own = [raw.get(name) for name in ("attn_implementation", "experts_implementation")]
    flat = [v for value in own for v in (value.values() if isinstance(value, dict) else [value])]
    inner = [name for value in raw.values() for name in _named_kernels(value)]
    return [value for value in flat if isinstance(value, str) and "/" in value] + inner


def _generation_config(folder: Path) -> Any:
    """Stop tokens and defaults of `generate`; None where the folder says nothing of them."""
    file = folder / "generation_config.json"
    if not file.is_file():
        return None
    try:
        return transformers.GenerationConfig.from_pretrained(folder)
    except Exception as error:  # as for the configuration
        reason = first_line(error)
        raise CorruptError(f"{file}: transformers can't read it ({reason})") from None


def tokenizer_loader(folder: Path) -> Callable[[], Any] | None:
    """Loads the tokenizer of a folder; None where it has none."""
    files = folder.iterdir() if folder.is_dir() else ()
    if not any(
        f.name in VOCABULARIES or f.suffix in (".model", ".spm", ".tiktoken") for f in files
    ):
        return None

    def load() -> Any:
        check_folder(folder)
        try:
            made = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
            made("a")  # some settings are looked at only then
            return made
        except Exception as error:  # the library tokenizers raises no other class
            raise InputError(
                f"{folder}: transformers can't load its tokenizer ({first_line(error)}); get its "
                "files anew, or install what that names"
            ) from None

    return load


def download(name: str) -> Path:
    """Fetch a hub id with huggingface_hub, safetensors and configuration only."""
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    remedy = "pass the path of a model folder that is on this machine instead"
    patterns = [*PATTERNS, "*.safetensors"]
    try:
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=patterns))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        reason = first_line(error)[:200]
        raise InputError(
            f"{name!r} is no folder here and can't be fetched from the hub ({reason}); {remedy}"
        ) from None


def identity(folder: Path, weights: Iterable[Path]) -> str:
    """SHA-256 of all bytes of a folder's weights and of what goes with them."""
    files = sorted({*weights, *(folder / name for name in carried(folder))})
    names = (str(file.relative_to(folder)) for file in files)
    return digest_of(dict(zip(names, file_digests(files), strict=True)))
