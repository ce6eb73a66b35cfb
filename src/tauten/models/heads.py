"""What a folder's weights say of the class and the ties that its configuration names.

A configuration often tells how a model was trained: it names a head that isn't stored, lacks one
that is, or ties tables that have parted since. transformers and sentence-transformers open such
folders by what is stored, and so does this; each departure is said in one line.
"""

import copy
import inspect
import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn

from tauten.core.errors import CorruptError, first_line
from tauten.core.figures import plural
from tauten.core.printing import logger
from tauten.core.progress import quiet_elsewhere
from tauten.models.loader import Loader
from tauten.models.reader import SafetensorsReader

Builder = Callable[[Any, Path], Callable[[], nn.Module]]
POOLING = "add_pooling_layer"  # an argument of encoders in transformers; ours in config.json
_DERIVED = re.compile(r"(position_ids|inv_freq|masked_bias|attn\.bias)$")  # computed, not learned
_TIES = "tie_word_embeddings"
_SHOWN = 3
_log = logger(__name__)


@dataclass
class Fit:
    """What the weights of a folder fit.

    Attributes:
        config: Perhaps of another class, or with other ties, than the folder's.
        prefix: Name of the base model that checkpoints may leave out.
        loaded: The model, where only transformers can load it; else None.
        changes: What differs from the folder's configuration, by key.
    """

    config: Any
    prefix: str = ""
    loaded: nn.Module | None = None
    changes: dict[str, Any] = field(default_factory=dict)


def fitted(config: Any, reader: SafetensorsReader, folder: Path, builder: Builder) -> Fit:
    """The configuration that a folder's weights fit.

    Args:
        config: Of the folder; it isn't changed.
        reader: Of its weights.
        folder: For messages, and for transformers to load from.
        builder: Makes a function that builds a model of a configuration.
    Raises:
        CorruptError: A tensor is missing that no departure explains, or two differ that are one
            in this model.
    """
    model: Any = reader.bounds.check_model(builder(config, folder), str(folder))
    fit = Fit(config, str(model.base_model_prefix))
    loader = Loader(model, reader, (), prefix=fit.prefix)
    if (parted := _parted(loader)) is not None:
        return _refitted(fit, _untied(config, parted, folder), reader, folder, builder)
    missing: Sequence[str] = loader.missing
    if missing and _unknown(loader):
        # transformers renames or merges tensors of some architectures while loading.
        fit.loaded, missing = _loaded(model, folder)
    if missing:
        change = _without_head(model, missing, loader) or _without_pooler(model, missing)
        if not change:
            loader.check(str(folder))
            raise CorruptError(f"{folder}: lacks tensor {missing[0]!r}")
        how = "without its pooler" if POOLING in change else f"as {change['architectures'][0]}"
        text = "%s: no weights for %s of %s (%s): opened %s"
        first, count = missing[0], plural(len(missing), "tensor")
        _log.warning(text, folder, count, type(model).__name__, first, how)
        return _refitted(fit, change, reader, folder, builder)
    if fit.loaded is None and (unknown := _unknown(loader)):
        text = "%s: %s left out, which %s has no place for (%s)"
        count = plural(len(unknown), "tensor")
        _log.info(text, folder, count, type(model).__name__, ", ".join(unknown[:_SHOWN]))
    return fit


def _refitted(
    fit: Fit, change: dict[str, Any], reader: SafetensorsReader, folder: Path, builder: Builder
) -> Fit:
    config = copy.deepcopy(fit.config)
    for key, value in change.items():
        setattr(config, key, value)
    rest = fitted(config, reader, folder, builder)
    rest.changes = change | rest.changes
    return rest


def _loaded(model: nn.Module, folder: Path) -> tuple[nn.Module, list[str]]:
    """The model as transformers loads it, and the tensors that it found no weights for."""
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity(logging.ERROR)  # it would report at length
    try:
        with quiet_elsewhere():
            loaded, info = type(model).from_pretrained(  # type: ignore[attr-defined]
                folder, dtype="float32", local_files_only=True, output_loading_info=True
            )
    except Exception as error:  # its code may raise anything of odd weights
        raise CorruptError(
            f"{folder}: transformers can't load these weights ({first_line(error)}); get the files "
            "that belong together"
        ) from None
    finally:
        transformers.logging.set_verbosity(verbosity)
    return loaded, sorted(info["missing_keys"])


def _without_head(model: Any, missing: Sequence[str], loader: Loader) -> dict[str, Any] | None:
    """The class without a head, if that is all that is missing and no part of it is stored."""
    inner = f"{model.base_model_prefix}."
    heads = {name.partition(".")[0] for name in missing}
    stored = {name.partition(".")[0] for name in loader.reader.names()}
    plain: Any = transformers.MODEL_MAPPING.get(type(model.config), None)
    if any(name.startswith(inner) for name in missing) or heads & stored or plain is None:
        return None
    name = (plain if isinstance(plain, type) else plain[0]).__name__  # some have several
    return None if name == type(model).__name__ else {"architectures": [name]}


def _without_pooler(model: nn.Module, missing: Sequence[str]) -> dict[str, Any] | None:
    """Leave the pooler of an encoder out, if that is all that is missing."""
    optional = POOLING in inspect.signature(type(model).__init__).parameters
    only = all("pooler" in name.split(".") for name in missing)
    return {POOLING: False} if optional and only else None


def _parted(loader: Loader) -> tuple[str, str] | None:
    """Two stored tensors that differ but are one in the model."""
    for slot in loader.every_slot():
        stored = list(dict.fromkeys(filter(None, map(loader.stored_name, slot.names))))
        for other in stored[1:]:
            if not torch.equal(loader.reader.read(stored[0]), loader.reader.read(other)):
                return stored[0], other
    return None


def _untied(config: Any, parted: tuple[str, str], folder: Path) -> dict[str, Any]:
    """Ties left out, as transformers does where both tensors are stored and differ."""
    one, other = parted
    if not getattr(config, _TIES, False):
        raise CorruptError(
            f"{folder}: {one!r} and {other!r} differ, but this model has one for both"
        )
    _log.warning(
        "%s: %r and %r differ, though they are called tied: opened untied", folder, *parted
    )
    return {_TIES: False}


def _unknown(loader: Loader) -> list[str]:
    """Stored tensors that the model has no place for, less those that are computed."""
    known = {loader.stored_name(name) for slot in loader.every_slot() for name in slot.names}
    return [n for n in loader.reader.names() if n not in known and not _DERIVED.search(n)]
