"""Folders of sentence-transformers: a transformer, pooling and what follows, opened by the library.

An artifact of one holds all weights in one file. Beside it lie what the library builds modules
from, and `LAYOUT`: the tensors that it looks for in each folder. To build the modules it is given
files of zeros in their place, which take no disk; the artifact's tensors are then filled in.

The artifact's `modules.json` names `PackedPart` where there are weights, so the library itself
loads it too, given `trust_remote_code=True`; without that it refuses, and never invents weights.
"""

import dataclasses
import functools
import importlib.util
import json
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from torch import nn
from typing_extensions import NotRequired, TypedDict

from tauten.core.description import Count, Sizes, exact
from tauten.core.errors import CorruptError, InputError, first_line
from tauten.core.files import make_folder, whole_file, write_json
from tauten.core.progress import quiet_elsewhere
from tauten.core.temporary import TemporaryFolder
from tauten.models.companions import (
    MODULES,
    Module,
    check_folder,
    copy_companions,
    inside,
    is_inside,
    left_behind,
    module_folders,
    read_json,
)
from tauten.models.heads import POOLING, fitted
from tauten.models.huggingface import CONFIG, download, identity, read_config, skeleton_builder
from tauten.models.loader import place, tensor_slots
from tauten.models.packing import prepacked
from tauten.models.reader import SINGLE, SafetensorsReader, open_folder
from tauten.models.safetensors_header import LENGTH_BYTES
from tauten.models.source import Source, module_source, shared_copy

KIND = "sentence-transformers"
LAYOUT = "sentence_layout.json"
REMEDY = "pip install 'tauten[sentence-transformers]'"
_SETTINGS = "config_sentence_transformers.json"
_PACKED = f"{__name__}.PackedPart"
_OWN = "sentence_transformers."  # begins the names of the library's classes
_Described = dict[str, tuple[str, Sizes, Count]]  # dtype, shape and bytes by name


@exact
class _Options(TypedDict):
    """What the library is told of the transformer."""

    add_pooling_layer: NotRequired[Literal[False]]


@exact
class _Layout(TypedDict):
    """`sentence_layout.json`."""

    options: _Options
    weights: dict[str, _Described]
    modules: list[Module]


def is_sentence_folder(folder: Path) -> bool:
    """Whether a folder holds a model of sentence-transformers that makes embeddings."""
    if not (folder / MODULES).is_file():
        return False
    file = folder / _SETTINGS
    kind = read_json(file, dict[str, Any]).get("model_type") if file.is_file() else None
    return kind in (None, "SentenceTransformer")


def is_installed() -> bool:
    """Whether sentence-transformers is."""
    return importlib.util.find_spec("sentence_transformers") is not None


def source(folder: Path) -> Source:
    """A folder of sentence-transformers.

    Raises:
        InputError: A module is of a class that isn't the library's own, or can't be loaded; or a
            link leads out of the folder.
        CorruptError: A file is damaged or a tensor is missing.
    """
    check_folder(folder)
    readers = _readers(folder)
    options = _options(folder, readers)
    weights = {part: _described(reader) for part, reader in readers.items()}

    files = [file for reader in readers.values() for file in reader.files]
    modules = read_json(folder / MODULES)
    layout = {"options": options, "weights": weights, "modules": modules}
    own = [{**m, "type": _PACKED} if m["path"] in weights else m for m in modules]

    def save_companions(out: Path) -> None:
        copy_companions(folder, out, with_heads=False)
        write_json(out / LAYOUT, layout)
        write_json(out / MODULES, own)

    return dataclasses.replace(
        module_source(_loaded(folder, options), str(folder), KIND),
        identify=functools.cache(lambda: identity(folder, files)),
        size_bytes=sum(reader.size_bytes for reader in readers.values()),
        save_companions=save_companions,
        left_behind=left_behind(folder),
        whole="sentence-transformers loads its modules whole",
    )


def empty_model(folder: Path, most_bytes: int) -> nn.Module:
    """The model of an artifact, its tensors on the meta device.

    Args:
        folder: The artifact.
        most_bytes: That its weights can take, dense.
    Raises:
        InputError: sentence-transformers isn't installed.
        CorruptError: What stands beside the weights is damaged.
    """
    if not is_installed():
        raise InputError(f"{folder} is opened by sentence-transformers, which is missing: {REMEDY}")
    layout = read_json(folder / LAYOUT, _Layout)
    lengths = [length for part in layout["weights"].values() for *_, length in part.values()]
    if sum(lengths) > most_bytes:
        raise CorruptError(
            f"{folder / LAYOUT}: weights of {sum(lengths)} bytes: expected at most {most_bytes}, "
            "for what is stored; make it anew"
        )
    with TemporaryFolder() as made:
        copy_companions(folder, made, with_heads=False)
        try:
            for part, tensors in layout["weights"].items():
                _write_zeros(made, part, tensors)
            write_json(made / MODULES, layout["modules"])
        except ValueError as error:
            raise CorruptError(f"{folder / LAYOUT}: damaged ({error}); make it anew") from None
        model = shared_copy(_loaded(made, layout["options"]))
    for slot in tensor_slots(model):
        place(slot, torch.empty_like(slot.empty, device="meta"))
    return model


class PackedPart:
    """Stands for a module with weights in the `modules.json` of an artifact."""

    @staticmethod
    def load(model_name_or_path: str, subfolder: str = "", **options: Any) -> nn.Module:
        """The module of an artifact, as sentence-transformers asks for it.

        Args:
            model_name_or_path: Folder or hub id of the artifact.
            subfolder: Of the module.
            options: Of its library; what they would change is settled.
        """
        from tauten.models import artifact

        path = Path(model_name_or_path)
        folder = path if path.is_dir() else download(model_name_or_path)
        model = prepacked(artifact.source(folder).open())
        return [*model.children()][module_folders(folder).index(subfolder)]


def _loaded(folder: Path, options: dict[str, Any]) -> nn.Module:
    """The model as its library loads it, in float32; no code of the folder is run."""
    for module in read_json(folder / MODULES):
        if not str(module.get("type")).startswith(_OWN):
            raise InputError(
                f"{folder / MODULES}: {module.get('type')!r} is code of that folder, which is "
                "never run; pass the SentenceTransformer itself"
            )
    from sentence_transformers import SentenceTransformer, __version__

    if int(__version__.split(".")[0]) < 6:
        raise InputError(
            f"sentence-transformers {__version__} imports what a folder's JSON names: pip install "
            "'sentence-transformers>=6'"
        )
    options = {"dtype": torch.float32, **options}
    try:
        with quiet_elsewhere():
            model: nn.Module = SentenceTransformer(
                str(folder), device="cpu", local_files_only=True, model_kwargs=options
            )
    except Exception as error:  # its modules may raise anything of odd values
        reason = first_line(error)
        raise InputError(f"{folder}: sentence-transformers can't load it ({reason})") from None
    return model.eval()


def _readers(folder: Path) -> dict[str, SafetensorsReader]:
    """Weights by folder, from that of the model; a pickle is never loaded."""
    readers = {}
    for part in dict.fromkeys(["", *module_folders(folder)]):
        found = [p.suffix for p in inside(folder, part).glob("*") if p.is_file()]
        if {".safetensors", ".bin", ".pt", ".pth"} & set(found):
            readers[part] = open_folder(folder / part)
    return readers


def _options(folder: Path, readers: dict[str, SafetensorsReader]) -> dict[str, Any]:
    """What the library must be told so that it invents no weights of the transformer.

    It opens the class without a head, whatever the configuration names.
    """
    first = folder / module_folders(folder)[0]
    has_config = (first / CONFIG).is_file()
    if not has_config or "model_type" not in read_json(first / CONFIG, dict[str, Any]):
        return {}  # its first module is no transformer
    reader = readers.get(module_folders(folder)[0])
    if reader is None:
        raise CorruptError(f"{first}: holds no weights; get {SINGLE} too")
    config = read_config(first, reader)
    plain: Any = transformers.MODEL_MAPPING.get(type(config), None)
    is_part = any(name.endswith("EncoderModel") for name in config.architectures or [])
    if isinstance(plain, type) and not is_part:
        config.architectures = [plain.__name__]
    changes = fitted(config, reader, first, skeleton_builder).changes
    return {POOLING: False} if POOLING in changes else {}


def _described(reader: SafetensorsReader) -> _Described:
    return {entry.name: (entry.dtype, entry.shape, entry.length) for entry in reader.entries()}


def _write_zeros(folder: Path, part: str, tensors: _Described) -> None:
    """A safetensors file of zeros, which are a hole in it."""
    if not is_inside(part):
        raise ValueError(f"{part!r} isn't in the folder")
    header, end = {}, 0
    for name, (dtype, shape, length) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + length]}
        end += length
    encoded = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    make_folder(folder / part)
    with whole_file(folder / part / SINGLE) as opened:
        opened.write(len(encoded).to_bytes(LENGTH_BYTES, "little") + encoded)
        opened.truncate(LENGTH_BYTES + len(encoded) + end)
