"""Entropy coding of tensors on their way to the disk; the reader decodes them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from torch import Tensor

from tauten.core.measurement import LayerRecord
from tauten.formats import entropy
from tauten.formats.packed import PackedWeight
from tauten.models.loader import Slot
from tauten.models.reader import CODED


def code_tensors(
    tensors: Mapping[str, Tensor], slots: Sequence[Slot]
) -> tuple[dict[str, Tensor], dict[str, int]]:
    """Entropy-code packed codes and floats where that makes them smaller.

    Args:
        tensors: By one of their names in the model.
        slots: Of the packed model: tell which of them hold codes, and how.
    Returns:
        What to store instead, under names that the reader knows; and the bytes saved, under every
        name that a tensor has in the model.
    """
    stored: dict[str, Tensor] = dict(tensors)
    saved: dict[str, int] = {}
    slot_of = {name: slot for slot in slots for name in slot.names}
    for name, tensor in tensors.items():
        layout = _layout(slot_of[name])
        if layout is None and tensor.dtype not in entropy.FLOATS.values():
            continue
        coded = entropy.encode(tensor, layout)
        if coded.nbytes < tensor.nbytes:
            del stored[name]
            stored[name + CODED] = coded
            saved |= dict.fromkeys(slot_of[name].names, tensor.nbytes - coded.nbytes)
    return stored, saved


def coded_record(record: LayerRecord, saved: Mapping[str, int]) -> LayerRecord:
    """The record of a layer with the bytes of its weight in the file; `saved` by `code_tensors`."""
    own = {record.name, f"{record.name}.weight".lstrip(".")}
    prefix = f"{record.name}.packed.".lstrip(".")
    less = sum(n for name, n in saved.items() if name in own or name.startswith(prefix))
    return replace(
        record,
        bits_per_weight=round(record.bits_per_weight - 8 * less / math.prod(record.shape), 3),
        size_bytes=max(0, record.size_bytes - less),  # a tied twin has no bytes of its own
    )


def _layout(slot: Slot) -> tuple[int, int] | None:
    """How a tensor holds codes; None where it doesn't."""
    module, key = slot.places[0]
    return module.code_layouts().get(key) if isinstance(module, PackedWeight) else None
