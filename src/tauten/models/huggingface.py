"""Hugging Face folders and hub ids."""

import copy
import hashlib
import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import transformers
from accelerate.big_modeling import init_empty_weights
from torch import nn

from tauten.core.errors import CorruptError, InputError, first_line
from tauten.core.progress import quiet_elsewhere
from tauten.models.experts import unfuse_experts
from tauten.models.loader import Loader
from tauten.models.reader import SafetensorsReader, open_folder
from tauten.models.source import Source, shared_copy

COMPANIONS = ("*.json", "*.model", "*.txt", "*.jinja", "tokenizer*", "LICENSE*")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.txt", "vocab.json", "spiece.model")
_log = logging.getLogger(__name__)


def source(folder: Path) -> Source:
    """A folder with config.json and safetensors.

    Raises:
        InputError: It isn't such a folder, or its architecture isn't one of transformers' own.
        CorruptError: A file is damaged or a tensor is missing.
    """
    config = read_config(folder)
    reader = open_folder(folder)
    build = skeleton_builder(config, folder)
    with_reader: SafetensorsReader | None = reader
    model = build()
    prefix = str(model.base_model_prefix)
    loader = Loader(model, reader, (), prefix=prefix)
    whole = ""
    if loader.missing and _is_renamed(model, loader):
        # transformers renames or merges this architecture's tensors while loading.
        whole = "transformers converts this architecture's tensors, so it is loaded whole"
        _log.warning("%s: %s", folder, whole)
        loaded = _load_whole(model, folder)
        build, with_reader = (lambda: shared_copy(loaded)), None
    else:
        loader.check(str(folder))
    return Source(
        name=str(folder),
        kind="huggingface",
        skeleton=build,
        fingerprint=_fingerprint(folder, reader),
        size_bytes=reader.size_bytes,
        reader=with_reader,
        base_prefix=prefix,
        save_companions=lambda out: copy_companions(folder, out),
        tokenizer=tokenizer_loader(folder),
        whole=whole,
    )


def read_config(folder: Path) -> Any:
    """The configuration of a folder, checked to be one that can be built without remote code."""
    file = folder / "config.json"
    if not file.is_file():
        raise InputError(f"{folder}: has no config.json; pass a Hugging Face model folder")
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
        config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError) as error:
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
    model_class = next((getattr(transformers, n) for n in names if hasattr(transformers, n)), None)
    if model_class is None:
        named = ", ".join(names) or "none"
        raise InputError(
            f"{where}: unknown architecture ({named}); transformers {transformers.__version__} "
            "doesn't have it and remote code is never run: pass the nn.Module instead"
        )

    generation = _generation_config(where)

    def build() -> nn.Module:
        with init_empty_weights(include_buffers=False):
            # Of its own: a surgery on one skeleton must not change the configuration of the next.
            model: Any = model_class(copy.deepcopy(config))
        model.tie_weights()
        if generation is not None and model.can_generate():
            model.generation_config = copy.deepcopy(generation)
        return unfuse_experts(model.eval())

    return build


def _generation_config(folder: Path) -> Any:
    """Stop tokens and defaults of `generate`; None where the folder says nothing of them."""
    file = folder / "generation_config.json"
    if not file.is_file():
        return None
    try:
        return transformers.GenerationConfig.from_pretrained(folder)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        reason = first_line(error)
        raise CorruptError(f"{file}: transformers can't read it ({reason})") from None


def tokenizer_loader(folder: Path) -> Callable[[], Any] | None:
    """Loads the tokenizer of a folder; None where it has none."""
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        return None
    return lambda: transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False)


def copy_companions(folder: Path, out: Path) -> None:
    """Copy configuration, tokenizer and licence, but no weights and no index of weights."""
    for pattern in COMPANIONS:
        for file in sorted(folder.glob(pattern)):
            if file.is_file() and not file.name.endswith((".index.json", ".py")):
                shutil.copyfile(file, out / file.name)


def download(name: str) -> Path:
    """Fetch a hub id with huggingface_hub, safetensors and configuration only."""
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    remedy = "pass the path of a model folder that is on this machine instead"
    patterns = [*COMPANIONS, "*.safetensors"]
    try:
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=patterns))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        reason = first_line(error)[:200]
        raise InputError(
            f"{name!r} is no folder here and can't be fetched from the hub ({reason}); {remedy}"
        ) from None


def _load_whole(model: nn.Module, folder: Path) -> nn.Module:
    """Load with transformers, which renames tensors; one that it would invent is an error."""
    with quiet_elsewhere():
        loaded, info = type(model).from_pretrained(  # type: ignore[attr-defined]
            folder, dtype="float32", local_files_only=True, output_loading_info=True
        )
    if info["missing_keys"]:
        raise CorruptError(f"{folder}: lacks tensor {min(info['missing_keys'])!r}")
    return shared_copy(loaded.eval())


def _is_renamed(model: nn.Module, loader: Loader) -> bool:
    known = {loader.source_name[key] for key in loader.source_name}
    return bool(set(loader.reader.names()) - known)


def _fingerprint(folder: Path, reader: SafetensorsReader) -> str:
    """Configuration, and size and 64 KiB at both ends of each file: contents in milliseconds."""
    digest = hashlib.sha256((folder / "config.json").read_bytes())
    for file in reader.files:
        size = file.stat().st_size
        digest.update(f"{file.name} {size}\n".encode())
        with file.open("rb") as opened:
            digest.update(opened.read(2**16))
            opened.seek(max(0, size - 2**16))
            digest.update(opened.read())
    return digest.hexdigest()
