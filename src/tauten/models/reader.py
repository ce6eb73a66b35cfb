"""Read tensors of a checkpoint one at a time."""

from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from typing_extensions import TypedDict

from tauten.core.dtypes import dtype_name
from tauten.core.errors import CorruptError, InputError
from tauten.core.figures import plural
from tauten.formats import entropy
from tauten.models.bounds import Bounds
from tauten.models.companions import check_fetched, inside, read_json
from tauten.models.safetensors_header import Entry, entries_of

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
CODED = ".huffman"  # ends the name under which a tensor's entropy-coded form is stored


class TensorReader(Protocol):
    """Where a model's tensors come from."""

    def names(self) -> Iterable[str]:
        """Names of all tensors."""
        ...

    def read(self, name: str) -> Tensor:
        """One tensor as it is stored, in memory of its own."""
        ...

    def where(self, name: str) -> str:
        """The file of a tensor, for messages."""
        ...

    def shape(self, name: str) -> tuple[int, ...] | None:
        """Shape of a tensor, None where that isn't known before it is read."""
        ...


class _Index(TypedDict):
    """`model.safetensors.index.json`."""

    weight_map: dict[str, str]


class SafetensorsReader:
    """Tensors of one or several safetensors files; entropy-coded ones are decoded as they are read.

    A header is read once, and a file is open only while a tensor is read: a mapping that stays
    open counts as resident memory of the process.

    Raises:
        CorruptError: A file is missing, truncated or not safetensors, or two of them hold other
            values for one tensor.
    """

    def __init__(self, files: Iterable[Path]):
        self._entry_of: dict[str, Entry] = {}
        self._coded: set[str] = set()
        self.files = tuple(files)
        for file in self.files:
            for entry in _checked_entries(file):
                name = entry.name.removesuffix(CODED)
                other = self._entry_of.setdefault(name, entry)
                if other is not entry and not _same(entry, other):
                    raise CorruptError(
                        f"{entry.file} and {other.file} hold other values for tensor {name!r}: "
                        "which one counts can't be told; take the wrong one out"
                    )
                if entry.name != name:
                    self._coded.add(name)

    def names(self) -> Iterable[str]:
        """Names of all tensors."""
        return self._entry_of.keys()

    def entries(self) -> Iterable[Entry]:
        """Where all tensors lie."""
        return self._entry_of.values()

    def where(self, name: str) -> str:
        """The file of a tensor, for messages."""
        return str(self._entry_of[name].file)

    def shape(self, name: str) -> tuple[int, ...] | None:
        """Shape of a tensor, None of one that is coded."""
        return None if name in self._coded else tuple(self._entry_of[name].shape)

    @property
    def bounds(self) -> Bounds:
        """What models these weights can be of."""
        return Bounds(len(self._entry_of), self.size_bytes)

    def read(self, name: str) -> Tensor:
        """One tensor as it is stored, or as it was before it was coded.

        Raises:
            CorruptError: It can't be read.
        """
        try:
            tensor = self._entry_of[name].read()
            return entropy.decode(tensor) if name in self._coded else tensor
        except (OSError, RuntimeError, InputError) as error:
            raise CorruptError(
                f"{self.where(name)}: can't read tensor {name!r}: {error}"
            ) from error

    @property
    def size_bytes(self) -> int:
        """Bytes of the files."""
        return sum(file.stat().st_size for file in self.files)


def open_folder(folder: Path) -> SafetensorsReader:
    """Read the safetensors of a Hugging Face folder, sharded or not.

    Beside a whole file an index is stale: transformers reads the file, too.

    Raises:
        InputError: There are none, or one is a link out of the folder; a pickle checkpoint is never
            loaded.
        CorruptError: The index is damaged or names a file outside the folder.
    """
    if (folder / SINGLE).is_file():
        return SafetensorsReader([inside(folder, SINGLE)])
    if (folder / INDEX).is_file():
        return SafetensorsReader(_indexed_files(folder))
    pickles = sorted(p.name for pattern in ("*.bin", "*.pt", "*.pth") for p in folder.glob(pattern))
    if pickles:
        raise InputError(
            f"{folder / pickles[0]} is a pickle checkpoint, which can run code when loaded; "
            "convert it to safetensors in an environment you trust, then pass that folder"
        )
    raise InputError(f"{folder}: holds neither {SINGLE} nor {INDEX}; pass a complete model folder")


def check_finite(tensor: Tensor, what: str, dtype: torch.dtype | None = None) -> None:
    """Refuse NaN and infinity, and say in which row.

    Args:
        tensor: Of any dtype and shape.
        what: Begins the message.
        dtype: That it will be computed in; by default its own.
    Raises:
        CorruptError: It holds one of them, or what becomes infinite in `dtype`.
    """
    if not tensor.is_floating_point() or not tensor.numel():
        return
    values = tensor.float() if tensor.dtype.itemsize == 1 else tensor
    # The extremes of a tensor with NaN are NaN; no temporary of its size is needed.
    ends = torch.stack(torch.aminmax(values))
    if not ends.isfinite().all():
        where = _first_row(~values.isfinite())
        raise CorruptError(f"{what} holds NaN or infinity{where}; get an undamaged checkpoint")
    if dtype is not None and not ends.to(dtype).isfinite().all():
        where, kept = _first_row(~values.to(dtype).isfinite()), dtype_name(dtype)
        largest = float(ends[ends.abs().argmax()])
        raise CorruptError(
            f"{what} holds {largest:g}{where}: more than {kept}, in which the model is computed, "
            "can hold; get an undamaged checkpoint or scale it down"
        )


def _first_row(wrong: Tensor) -> str:
    """In which row, of a tensor that has any, the first value is wrong."""
    if not wrong.dim():
        return ""
    found = wrong.flatten(1).any(1) if wrong.dim() > 1 else wrong
    more = plural(int(found.sum()), "row")
    return f" in row {int(found.nonzero()[0])} ({more} of {len(found)})"


def _same(one: Entry, other: Entry) -> bool:
    """Whether two entries stand for the same tensor, to the bit."""
    if (one.name, one.dtype, one.shape) != (other.name, other.dtype, other.shape):
        return False
    return one.content() == other.content()


def _checked_entries(file: Path) -> list[Entry]:
    check_fetched(file)
    try:
        with safe_open(file, framework="pt"):  # which checks all that the header says
            return entries_of(file)
    except (OSError, SafetensorError) as error:
        raise CorruptError(
            f"{file}: not a whole safetensors file ({error}); copy or download it again"
        ) from error


def _indexed_files(folder: Path) -> list[Path]:
    index: _Index = read_json(folder / INDEX, _Index)
    names = sorted(set(index["weight_map"].values()))
    held = {file.name for file in folder.iterdir()}
    for name in names:
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise CorruptError(
                f"{folder / INDEX} names {name!r}, which isn't a safetensors file of that folder"
            )
        # It may be no name that a file could have.
        if name not in held or not inside(folder, name).is_file():
            raise CorruptError(f"{folder / name} is missing, though the index names it; get it too")
    return [inside(folder, name) for name in names]
