"""The tensors of a model's parts: read as stored, loaded for a while, put in place."""

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from tauten.formats.packed import PackedWeight
from tauten.models.loader import Loader, Slot, place, tensor_slots
from tauten.models.structure import Structure
from tauten.runtime.modules import PackedModule


class PartTensors:
    """Tensors by the part that they lie in, a block or all that is outside of blocks ('').

    Args:
        model: As it is now; parts change as they are packed.
        structure: Of the model.
        loader: Source of empty tensors; None where all tensors are in memory.
    """

    def __init__(self, model: nn.Module, structure: Structure, loader: Loader | None):
        self.model, self._structure, self._loader = model, structure, loader

    def slots(self, parts: Sequence[str]) -> list[Slot]:
        """Tensors of some parts."""
        slots = []
        for slot in tensor_slots(self.model):
            owners = {self._structure.block_of(name) for name in slot.names}
            if (owners.pop() if len(owners) == 1 else "") in parts:
                slots.append(slot)
        return slots

    @contextlib.contextmanager
    def filled(self, parts: Sequence[str]) -> Iterator[None]:
        """Load the empty tensors of some parts for a while."""
        slots = [slot for slot in self.slots(parts) if slot.empty.is_meta and not slot.packed]
        for slot in slots:
            place(slot, self.cast(self.stored(slot.empty)))
        try:
            yield
        finally:
            for slot in slots:
                place(slot, slot.empty)

    def replace(self, part: str, changed: Mapping[str, Tensor]) -> None:
        """Put new values for tensors of a part, by names in the model, in their place for good.

        They get the dtype that the model computes in.
        """
        for slot in self.slots([part]):
            for name in set(slot.names) & set(changed):
                dtype = self.cast(self.stored(slot.empty)).dtype
                place(slot, changed[name].to(dtype))

    def stored(self, tensor: Tensor) -> Tensor:
        """A tensor of the model as its source holds it."""
        if not tensor.is_meta:
            return tensor
        assert self._loader is not None, "empty tensors come with a loader"
        return self._loader.raw(self._loader.slot_of(tensor))

    def cast(self, tensor: Tensor) -> Tensor:
        """A stored tensor in the dtype that the model computes in."""
        return tensor if self._loader is None else self._loader.cast(tensor)

    def empty(self, names: Iterable[str]) -> None:
        """Keep only the shapes of packed weights."""
        for name in names:
            module = self.model.get_submodule(name)
            assert isinstance(module, PackedModule)
            module.packed.to("meta")

    @contextlib.contextmanager
    def restored(
        self, part: str, specs: Mapping[str, Any], tensors: Mapping[str, Tensor]
    ) -> Iterator[None]:
        """Put what was stored of a packed part in its place for a while.

        Args:
            part: Its packed layers are already there, empty.
            specs: Of them.
            tensors: Of the part, by names in the model.
        """
        for name in (n for n, spec in specs.items() if "tied_to" not in spec["weight"]):
            packed = self.model.get_submodule(name).packed
            assert isinstance(packed, PackedWeight)
            prefix = f"{name}.packed."
            own = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
            packed.load_state_dict(own, assign=True)
        for name in specs:
            layer = self.model.get_submodule(name)
            layer.step = tensors.get(f"{name}.step", layer.step)
            if f"{name}.bias" in tensors:  # rather than the original's: it may have been changed
                layer.bias = nn.Parameter(tensors[f"{name}.bias"], requires_grad=False)
        # Not from the source: a technique may have changed what isn't packed.
        slots = [slot for slot in self.slots([part]) if not slot.packed]
        for slot in slots:
            place(slot, self.cast(tensors[slot.names[0]]))
        yield
        for slot in slots:
            place(slot, slot.empty)
        self.empty(specs)
