"""Sources of reshaped models."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn

from tauten.core.errors import InputError
from tauten.core.files import write_json
from tauten.core.temporary import TemporaryFolder
from tauten.models.config_changes import changed_config, config_of, merged
from tauten.models.loader import place, tensor_slots
from tauten.models.outline import outline
from tauten.models.reader import SafetensorsReader
from tauten.models.source import Source
from tauten.models.surgery import Surgery, operate

CONFIG = "config.json"


def reshaped_source(original: Source, structure: Sequence[dict[str, Any]]) -> Source:
    """A source whose skeleton is that of an original after surgeries, its tensors empty.

    Args:
        original: What the first surgery was done on.
        structure: Surgeries as a manifest holds them.
    """
    if not structure:
        return original
    surgeries = [Surgery.from_dict(raw) for raw in structure]

    def skeleton() -> nn.Module:
        model = original.skeleton()
        for surgery in surgeries:
            model = operate(model, surgery)
        return model

    return dataclasses.replace(
        original,
        skeleton=skeleton,
        outline=None,
        structure=(*original.structure, *structure),
    )


def with_tensors(source: Source, reader: SafetensorsReader) -> Source:
    """A source with other tensors, each under its name in the model."""
    return dataclasses.replace(
        source,
        reader=reader,
        base_prefix="",
        size_bytes=reader.size_bytes,
        keep_dtype=source.keep_dtype or source.kind in ("module", "factory"),
        whole="",
    )


def stored_shape(source: Source) -> nn.Module:
    """A skeleton whose floating tensors have the dtypes that the source stores."""
    model = source.skeleton()
    if source.reader is not None:
        loader = source.loader(model, ())
        for slot in loader.slots(""):
            place(slot, torch.empty_like(loader.raw(slot), device="meta"))
    return model


def stored_tensors(model: nn.Module, shape: nn.Module, what: str) -> dict[str, Tensor]:
    """The tensors of a model in the dtypes of an empty one that is shaped alike.

    Raises:
        InputError: It isn't shaped alike: `what` changed something that a surgery doesn't cover.
    """
    difference = outline(shape).difference(outline(model))
    if difference:
        raise InputError(f"{what} changed {difference}, and a file can't hold that")
    dtypes = {slot.names[0]: slot.empty.dtype for slot in tensor_slots(shape)}
    tensors = {slot.names[0]: slot.empty.detach().cpu() for slot in tensor_slots(model)}
    return {name: tensor.to(dtypes[name]) for name, tensor in tensors.items()}


def with_plain_config(original: Source, reshaped: Source) -> Source:
    """The reshaped source with its configuration file in place of its surgeries.

    Only where transformers builds the same shape from that file; other sources are returned as
    they are.
    """
    from tauten.models import huggingface  # late, as in `source`: a plain module doesn't need it

    if reshaped.structure == original.structure:
        return reshaped
    with TemporaryFolder() as folder:
        original.save_companions(folder)
        if not (folder / CONFIG).is_file():
            return reshaped
        # Both from the file: what a GGUF was read into has marks of that besides.
        plain = huggingface.skeleton_builder(huggingface.read_config(folder), folder)
        file_source = dataclasses.replace(original, skeleton=plain, structure=())
        model = reshaped_source(file_source, reshaped.structure).skeleton()
        changes = changed_config(config_of(plain()), config_of(model))
        _patch(folder / CONFIG, changes)
        try:
            build = huggingface.skeleton_builder(huggingface.read_config(folder), folder)
            built = outline(build())
        except (InputError, StrictDataclassError, ValueError, RuntimeError):
            return reshaped  # sizes that transformers refuses, such as heads that don't divide
        if built.difference(outline(model)):
            return reshaped

    def save_companions(out: Path) -> None:
        original.save_companions(out)
        _patch(out / CONFIG, changes)

    return dataclasses.replace(
        reshaped, skeleton=build, outline=None, structure=(), save_companions=save_companions
    )


def _patch(file: Path, changes: dict[str, Any]) -> None:
    write_json(file, merged(json.loads(file.read_text(encoding="utf-8")), changes))
