"""A model on its way to workers: its tensors in shared memory or on disk, its modules without any.

No worker gets more than it asks for: tensors are read one by one, by name, and those in shared
memory are the same memory for all workers. What is pickled, by value (`by_value`), is the module
skeleton (tensors on the meta device) of a model that stands in this process' memory; it is
unpickled only by workers of this process. A model on disk isn't pickled at all: workers open the
folder themselves, as `tauten.load` does, and run no remote code.
"""

import copy
import mmap
from collections.abc import Iterable, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import output_capturing

from tauten.models.loader import Loader, place, tensor_slots
from tauten.models.source import open_source
from tauten.models.state import written_buffers
from tauten.parallel.by_value import dump_model, loads, unsendable
from tauten.parallel.shared_file import SharedFile, Tree

_CACHES = ("use_cache", "use_mems_eval")  # what configurations call returning one


@dataclass(frozen=True)
class Parcel:
    """A model that workers can open.

    Attributes:
        name: Of the model, for messages; without `tensors` also where it is on disk.
        skeleton: Pickled modules.
        file: In memory, of the tensors that belong to the skeleton.
        tensors: Where each lies in it, by name; None for models that are opened from disk.
    """

    name: str
    skeleton: bytes = b""
    file: Path = Path()
    tensors: Tree | None = None

    def open(self) -> "Opened":
        """Its modules, all tensors empty."""
        if self.tensors is None:
            source = open_source(self.name)
            model = source.skeleton()
            return Opened(model, source.loader(model, ()), source.written_out)
        model = loads(self.skeleton)
        reader = MappedReader(self.file, self.tensors)
        return Opened(model, Loader(model, reader, (), dtype=None))


class Opened:
    """A model whose tensors are loaded on demand.

    Attributes:
        model: Its tensors are on the meta device until they are loaded.
        written_out: Packed layers that are to be made dense once they are loaded.
    """

    def __init__(self, model: nn.Module, loader: Loader, written_out: tuple[str, ...] = ()):
        self.model, self.written_out = model, written_out
        self._loader = loader
        switch_cache_off(model)
        _register(model)

    def load(self, names: Set[str] | None = None) -> None:
        """Fill tensors by their names in the model; all by default. Tied ones are one tensor."""
        for slot in self._loader.slots(""):
            if slot.empty.is_meta and (names is None or not names.isdisjoint(slot.names)):
                tensor = self._loader.raw(slot)
                value = tensor if slot.packed else self._loader.cast(tensor)
                if isinstance(slot.empty, nn.Parameter):
                    value = nn.Parameter(value, requires_grad=slot.empty.requires_grad)
                place(slot, value)


class MappedReader:
    """Tensors of a parcel where they lie; who writes into one writes into a copy of his own."""

    def __init__(self, file: Path, tensors: Tree):
        self._tensors: dict[str, Tensor] = SharedFile(file, mmap.ACCESS_COPY).read(tensors)

    def names(self) -> Iterable[str]:
        """Names of all tensors."""
        return self._tensors.keys()

    def read(self, name: str) -> Tensor:
        """A tensor."""
        return self._tensors[name]

    def where(self, name: str) -> str:
        """For messages."""
        return "the model that was handed over"

    def shape(self, name: str) -> tuple[int, ...]:
        """Of a tensor."""
        return tuple(self._tensors[name].shape)


def dump_skeleton(model: nn.Module) -> bytes:
    """Pickle a model's modules, without its tensors but with their gradient flags.

    Raises:
        UnsendableError: They can't be pickled.
    """
    return dump_model(_without_tensors(model))


def pack(model: nn.Module, skeleton: bytes, folder: Path) -> Parcel:
    """Make a parcel of a module in memory.

    Args:
        model: Isn't changed.
        skeleton: Made by `dump_skeleton`.
        folder: In memory, for a file that holds each tensor once.
    """
    tensors = {slot.names[0]: slot.empty for slot in tensor_slots(model)}
    file = folder / "model"
    return Parcel(type(model).__name__, skeleton, file, SharedFile(file).write(tensors))


def switch_cache_off(model: nn.Module) -> None:
    """Have language models, also those inside of others, return no cache unless asked for one."""
    for module in model.modules():
        config: Any = getattr(module, "config", None)
        for name in _CACHES:
            if hasattr(config, name):
                setattr(config, name, False)


def _register(model: nn.Module) -> None:
    """Have transformers know the classes of a model as if it had been made in this process.

    It keeps by them which layers' outputs a call may ask for, such as `output_hidden_states`.
    """
    registry: Any = getattr(output_capturing, "_CAN_RECORD_REGISTRY", {})
    for module in model.modules():
        if isinstance(module, PreTrainedModel):
            registry[module] = module._can_record_outputs


def twin(model: nn.Module) -> nn.Module:
    """A model of its own modules on the same tensors, but for buffers that a forward may write.

    Raises:
        UnsendableError: It can't be copied.
    """
    written = {id(buffer) for _, _, buffer in written_buffers(model)}
    tensors = (t for t in (*model.parameters(), *model.buffers()) if id(t) not in written)
    return _copied(model, {id(t): t for t in tensors})


def _without_tensors(model: nn.Module) -> nn.Module:
    memo: dict[int, Any] = {}
    for slot in tensor_slots(model):
        empty = torch.empty_like(slot.empty, device="meta")
        if isinstance(slot.empty, nn.Parameter):
            empty = nn.Parameter(empty, requires_grad=slot.empty.requires_grad)
        memo[id(slot.empty)] = empty
    return _copied(model, memo)


def _copied(model: nn.Module, memo: dict[int, Any]) -> nn.Module:
    try:
        return copy.deepcopy(model, memo)
    except Exception as error:  # copying runs code of whoever wrote the model
        raise unsendable(model, error, copy.deepcopy) from error
