"""Fill a model's empty tensors from a reader: all at once, or a block at a time as it runs."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from tauten.core.errors import CorruptError
from tauten.formats.packed import PackedWeight
from tauten.models.reader import TensorReader, check_finite
from tauten.runtime.modules import PackedModule, unsaved


@dataclass
class Slot:
    """One tensor of a model and every place it stands in; a tied tensor has several.

    Attributes:
        empty: The meta tensor that stands for it while it isn't loaded.
        names: Its names in the model.
        places: (module, attribute) pairs.
        packed: It belongs to a packed weight and keeps its stored dtype.
    """

    empty: Tensor
    names: list[str] = field(default_factory=list)
    places: list[tuple[nn.Module, str]] = field(default_factory=list)
    packed: bool = False


class Loader:
    """Knows where each tensor of a model comes from.

    Args:
        model: Its parameters and persistent buffers are what is filled.
        reader: Source of tensors by name.
        blocks: Names of the blocks that may be loaded and freed on their own.
        dtype: Floating tensors of the model are cast to it; None keeps them as stored.
        prefix: Base model's name that checkpoints may leave out or add (`transformer`, `bert`).
    Raises:
        CorruptError: The reader lacks a tensor, or holds it in another shape.
    """

    def __init__(
        self,
        model: nn.Module,
        reader: TensorReader,
        blocks: Iterable[str],
        dtype: torch.dtype | None = torch.float32,
        prefix: str = "",
    ):
        self.reader, self.dtype = reader, dtype
        self._available = set(reader.names())
        self._prefix = f"{prefix}." if prefix else ""
        slots = tensor_slots(model)
        self._parts: dict[str, list[Slot]] = {"": [], **{block: [] for block in blocks}}
        for slot in slots:
            owners = {self._part_of(name) for name in slot.names}
            # What two blocks share stays loaded with the outer part.
            self._parts[owners.pop() if len(owners) == 1 else ""].append(slot)
        self._slot_of = {id(slot.empty): slot for slot in slots}
        self.source_name = {id(slot): self._find(slot) for slot in slots}
        self.missing = [s.names[0] for s in slots if self.source_name[id(s)] is None]

    def check(self, where: str) -> None:
        """Raise CorruptError if a tensor has no source; `where` names the file or folder."""
        if self.missing:
            more = f" and {len(self.missing) - 1} more" if len(self.missing) > 1 else ""
            raise CorruptError(f"{where}: lacks tensor {self.missing[0]!r}{more}")
        for slot in self.every_slot():
            name = self.source_name[id(slot)]
            assert name is not None, "none is missing"
            shape = self.reader.shape(name)
            if shape is not None and shape != slot.empty.shape:
                got, want = _size(shape), _size(slot.empty.shape)
                raise CorruptError(
                    f"{self.reader.where(name)}: tensor {name!r} is {got} there, but the model "
                    f"needs {want}; get the files that belong together"
                )

    def slots(self, part: str) -> list[Slot]:
        """Tensors of a block, or of all that lies outside blocks ('')."""
        return self._parts[part]

    def every_slot(self) -> list[Slot]:
        """Tensors of the whole model."""
        return [slot for part in self._parts.values() for slot in part]

    def slot_of(self, tensor: Tensor) -> Slot:
        """The slot of an empty tensor of the model."""
        return self._slot_of[id(tensor)]

    def raw(self, slot: Slot) -> Tensor:
        """A tensor as it is stored; a buffer that isn't floating in the dtype that it has in the
        model.

        Raises:
            CorruptError: It has another shape or kind of numbers than in the model, or is a weight
                that holds NaN or infinity.
        """
        name = self.source_name[id(slot)]
        assert name is not None, "check() was called"
        tensor, empty = self.reader.read(name), slot.empty
        what = f"{self.reader.where(name)}: tensor {name!r}"
        is_weight = isinstance(empty, nn.Parameter)
        if not (slot.packed or is_weight or empty.is_floating_point()):
            tensor = _as_buffer(tensor, empty)
        kind = tensor.is_floating_point(), tensor.is_complex()
        fits = kind == (empty.is_floating_point(), empty.is_complex())
        fits = tensor.dtype == empty.dtype if slot.packed else fits
        if tensor.shape != empty.shape or not fits:
            got, want = _describe(tensor), _describe(empty)
            raise CorruptError(
                f"{what} is {got}, but the model needs {want}; get the files that belong together"
            )
        if tensor.dtype.itemsize == 1 and tensor.is_floating_point():
            self._check_scales(name, what)
        if slot.packed or is_weight:  # a buffer may be a mask of -inf
            check_finite(tensor, what, None if slot.packed else self.dtype)
        return tensor

    def _check_scales(self, name: str, what: str) -> None:
        """Refuse a float8 tensor that others stored with scales, which would be left out."""
        stem = name.rpartition(".")[0]
        beside = (
            n for n in self._available if n.startswith(f"{stem}.") and "scale" in n[len(stem) :]
        )
        if (scale := min(beside, default=None)) is not None:
            raise CorruptError(
                f"{what} is float8 with scales of its own ({scale!r}), which aren't read: convert "
                "the checkpoint to bfloat16, or pass the original"
            )

    def load(self, part: str) -> None:
        """Fill the tensors of a part.

        Raises:
            CorruptError: A tensor isn't what the model needs, or holds what it can't.
        """
        for slot in self._parts[part]:
            tensor = self.raw(slot)
            place(slot, tensor if slot.packed else self.cast(tensor))
        places = {slot.places[0][0]: slot for slot in self._parts[part]}
        for module, slot in places.items():
            if isinstance(module, PackedWeight | PackedModule):
                self._check_contents(module, slot)

    def _check_contents(self, module: PackedWeight | PackedModule, slot: Slot) -> None:
        try:
            module.check_contents()
        except CorruptError as error:
            name = self.source_name[id(slot)]
            assert name is not None, "it was read"
            place = f"{self.reader.where(name)}: {name.rpartition('.')[0]!r}"
            raise CorruptError(f"{place}: {error}; the file is damaged, make it anew") from error

    def cast(self, tensor: Tensor) -> Tensor:
        """A tensor in the dtype that the model computes in."""
        if self.dtype is None or not tensor.is_floating_point():
            return tensor
        return tensor.to(self.dtype)

    def free(self, part: str) -> None:
        """Empty the tensors of a part again."""
        for slot in self._parts[part]:
            place(slot, slot.empty)

    def load_all(self) -> None:
        """Fill the whole model."""
        for part in self._parts:
            self.load(part)

    def stream(self, model: nn.Module) -> None:
        """Fill the outer part now, and each block only while it runs."""
        self.load("")
        for block in self._parts:
            if block:
                module = model.get_submodule(block)
                module.register_forward_pre_hook(lambda *_, block=block: self.load(block))
                module.register_forward_hook(lambda *_, block=block: self.free(block))

    def _part_of(self, name: str) -> str:
        return next((b for b in self._parts if b and name.startswith(b + ".")), "")

    def stored_name(self, name: str) -> str | None:
        """Under which name a tensor of the model is stored; None where it isn't."""
        shorter = name.removeprefix(self._prefix)
        names = (name, shorter, self._prefix + name)
        return next((n for n in names if n in self._available), None)

    def _find(self, slot: Slot) -> str | None:
        return next(filter(None, map(self.stored_name, slot.names)), None)


def place(slot: Slot, tensor: Tensor) -> None:
    """Put a tensor in every place of a slot."""
    value: Tensor = tensor
    if isinstance(slot.empty, nn.Parameter) and not isinstance(tensor, nn.Parameter):
        value = nn.Parameter(tensor, requires_grad=False)
    for module, key in slot.places:
        store = module._parameters if key in module._parameters else module._buffers
        store[key] = value  # type: ignore[assignment]


def tensor_slots(model: nn.Module) -> list[Slot]:
    """Parameters and persistent buffers, each once."""
    slots: dict[int, Slot] = {}
    for prefix, module in model.named_modules(remove_duplicate=False):
        transient = unsaved(module)
        for key, tensor in [*module._parameters.items(), *module._buffers.items()]:
            if tensor is None or key in transient:
                continue
            packed = isinstance(module, PackedWeight)
            slot = slots.setdefault(id(tensor), Slot(tensor, packed=packed))
            slot.names.append(f"{prefix}.{key}" if prefix else key)
            if (module, key) not in slot.places:
                slot.places.append((module, key))
    return list(slots.values())


def _as_buffer(tensor: Tensor, empty: Tensor) -> Tensor:
    """A stored buffer of whole numbers in the model's dtype, where that keeps all of them."""
    if tensor.dtype == empty.dtype or tensor.is_complex():
        return tensor
    converted = tensor.to(empty.dtype)
    return converted if torch.equal(converted.to(tensor.dtype), tensor) else tensor


def _describe(tensor: Tensor) -> str:
    return f"{_size(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"


def _size(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape)) or "a scalar"
