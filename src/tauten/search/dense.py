"""Pruned layers that this machine computes slower than dense ones are written out in memory."""

import copy
from dataclasses import dataclass
from typing import Any

from torch import nn

from tauten.core.figures import format_bytes
from tauten.core.printing import logger
from tauten.core.progress import track
from tauten.evaluation.formats import FormatTime, example_inputs, layer_name, time_packed
from tauten.formats.sparse import SparseWeight
from tauten.models.loader import Loader
from tauten.models.packing import packed_modules, unpacked_layer
from tauten.runtime.kernels import memory_bytes
from tauten.runtime.modules import PackedConv, PackedLinear, PackedModule
from tauten.search.candidate import Candidate
from tauten.search.speed import Revert

WRITTEN_OUT = "dense in memory, packed on disk"
_log = logger(__name__)


@dataclass(frozen=True)
class Dense:
    """Pruned layers that are to be written out.

    Attributes:
        names: Of the layers.
        reverts: What was slower, each kind of layer once.
        more_bytes: What they take in memory beyond their packed form.
    """

    names: tuple[str, ...]
    reverts: tuple[dict[str, Any], ...]
    more_bytes: int

    def announce(self) -> None:
        """Say so."""
        if self.names:
            _log.warning(
                "%d pruned layers are slower packed than dense on this machine: they are written "
                "out in memory, which grows by %s for it; files stay packed",
                len(self.names),
                format_bytes(self.more_bytes),
            )


def slow_pruned_layers(model: nn.Module, loader: Loader | None = None) -> Dense:
    """Time each kind of pruned layer beside its dense twin: on one row, or one image.

    Args:
        model: Packed; isn't changed.
        loader: Of its empty tensors; None where all are in memory.
    """
    kinds: dict[tuple[Any, ...], list[tuple[str, PackedLinear | PackedConv]]] = {}
    users: dict[int, int] = {}
    for _, layer in packed_modules(model):
        users[id(layer.packed)] = users.get(id(layer.packed), 0) + 1
    for name, layer in packed_modules(model):
        sparse = isinstance(layer.packed, SparseWeight) and users[id(layer.packed)] == 1
        if sparse and isinstance(layer, PackedLinear | PackedConv):
            kinds.setdefault(_kind(layer), []).append((name, layer))
    names, reverts, more_bytes = [], list[dict[str, Any]](), 0
    for members in track(list(kinds.values()), "timing pruned layers", len(kinds)):
        time = _timed(_loaded(members[0][1], loader))
        if time.ratio > 1:
            names += [name for name, _ in members]
            reverts.append(Revert(time, WRITTEN_OUT).facts())
            more_bytes += sum(_dense_bytes(m) - memory_bytes(m.packed) for _, m in members)
    return Dense(tuple(names), tuple(reverts), more_bytes)


def slow_candidate_layers(candidate: Candidate, trial: str) -> Dense:
    """The same of a model on disk, decided once a run: a resumed one writes what it would have."""
    weights = [spec.get("weight", {}) for spec in candidate.specs.values()]
    if not any(weight.get("kind") == SparseWeight.kind for weight in weights):
        return Dense((), (), 0)
    known = candidate.journal.find("dense", of=trial)
    if known is None:
        model = candidate.source.skeleton()
        found = slow_pruned_layers(model, candidate.source.loader(model, candidate.blocks))
        known = {"names": found.names, "reverts": found.reverts, "more_bytes": found.more_bytes}
        candidate.journal.add("dense", of=trial, **known)
    return Dense(tuple(known["names"]), tuple(known["reverts"]), known["more_bytes"])


def _kind(layer: PackedModule) -> tuple[Any, ...]:
    """What its speed depends on: its shape, how it is packed, about how many weights are kept."""
    packed = layer.packed
    assert isinstance(packed, SparseWeight)
    share = round(packed.slots / (packed.out_features * packed.in_features), 1)
    settings = str(sorted(layer.settings.items()))
    codes = packed.grid or packed.values.dtype
    return type(layer), packed.shape, packed.pattern, codes, share, layer.activation, settings


def _loaded(layer: PackedLinear | PackedConv, loader: Loader | None) -> PackedLinear | PackedConv:
    """A copy without bias, whose weight is at hand."""
    loaded = copy.deepcopy(layer)
    loaded.bias = None
    if loader is not None:
        own = {
            name: loader.raw(loader.slot_of(buffer))
            for name, buffer in layer.packed.named_buffers()
            if buffer.is_meta
        }
        loaded.packed.load_state_dict(own, assign=True, strict=False)
    return loaded


def _timed(layer: PackedLinear | PackedConv) -> FormatTime:
    dense = unpacked_layer(layer)
    x = next(example_inputs(dense, (1,))).to(layer.dtype_like.dtype)
    packed = layer.packed
    assert isinstance(packed, SparseWeight)
    times = time_packed(dense, packed, layer.activation, x)
    bits = f"{packed.grid.bits} bits" if packed.grid else str(packed.values.dtype)[6:]
    kept = packed.slots / (packed.out_features * packed.in_features)
    return FormatTime(layer_name(dense), f"pruned to {kept:.0%}, {bits}", *times)


def _dense_bytes(layer: PackedModule) -> int:
    return layer.packed.out_features * layer.packed.in_features * layer.dtype_like.itemsize
