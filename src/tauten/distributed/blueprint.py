"""A model on its way to another machine: its files, or the name of a function that makes it.

Nothing is pickled. Files are those that `tauten.load` and transformers read without running code;
a factory is imported on the worker, where it must be installed.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import transformers
from torch import Tensor, nn

from tauten.core.errors import InputError
from tauten.core.files import make_folder, whole_file
from tauten.core.progress import quiet_elsewhere
from tauten.core.temporary import TemporaryFolder
from tauten.distributed.wire import to_bytes, to_tensor
from tauten.models.companions import carried, inside, is_inside
from tauten.models.huggingface import download
from tauten.models.loader import Loader
from tauten.models.packing import write_out
from tauten.models.source import Source, names_code, open_source
from tauten.models.structure import find_structure
from tauten.parallel.parcel import Parcel

_kept: list[Any] = []  # folders of models that this worker has open


def blueprint(model: Any, shared_folders: bool) -> dict[str, Any]:
    """What another machine needs to open a model.

    Args:
        model: A model folder, a GGUF file, a hub id, `package.module:factory`, or a module of
            transformers.
        shared_folders: Workers see the same folders: only the path travels.
    Raises:
        InputError: It can't be opened elsewhere.
    """
    if isinstance(model, transformers.PreTrainedModel):
        with TemporaryFolder() as folder, quiet_elsewhere():
            model.save_pretrained(folder)
            return {"files": _files(folder)}
    if isinstance(model, nn.Module) or not isinstance(model, str | Path):
        raise InputError(
            f"{type(model).__name__} can't travel to other machines, as modules would have to be "
            "pickled: pass a model folder, or package.module:factory that workers can import"
        )
    if names_code(model):
        return {"path": model}
    path = Path(model).expanduser()
    path = path if path.exists() else download(str(model))
    if shared_folders:
        return {"path": str(path.resolve())}
    return {"files": _files(path)}


def open_model(model: Any) -> Any:
    """Open a model in a worker, ready to be called.

    Args:
        model: From this machine, or what `blueprint` made on another; or a model that stays in
            its process, as it is.
    """
    if not isinstance(model, Parcel | dict):
        return model
    if isinstance(model, Parcel):
        opened = model.open()
        opened.load()
        write_out(opened.model, opened.written_out)
        return opened.model.eval()
    return source_of(model).open()


def source_of(model: Parcel | dict[str, Any]) -> Source:
    """A model in a worker as a source, which can be opened any number of times."""
    if isinstance(model, dict):
        return open_source(model.get("path") or unpacked(model["files"]))
    if model.tensors is None:
        return open_source(model.name)
    return open_source(open_model(model))


def open_skeleton(model: Parcel | dict[str, Any]) -> Callable[[], tuple[nn.Module, Loader | None]]:
    """A function that makes modules of their own on the same tensors.

    Returns:
        The modules, and what loads their tensors block by block; None where they are in memory.
    """
    source = source_of(model)

    def opened() -> tuple[nn.Module, Loader | None]:
        made = source.skeleton()
        has_reader = source.reader is not None
        return made, source.loader(made, find_structure(made).blocks) if has_reader else None

    return opened


def _files(path: Path) -> dict[str, Tensor]:
    """Contents by name: (bytes,) uint8."""
    if path.is_file():
        return {path.name: to_tensor(path.read_bytes())}
    weights = (file.relative_to(path) for file in sorted(path.glob("*.safetensors*")))
    names = sorted({*carried(path), *weights})
    return {name.as_posix(): to_tensor(inside(path, name).read_bytes()) for name in names}


def unpacked(files: dict[str, Tensor]) -> Path:
    """The folder or file that `blueprint` took contents from, on this machine until it ends."""
    folder = TemporaryFolder()
    _kept.append(folder)
    for name, content in files.items():
        if not is_inside(name):
            raise InputError(f"a model's file is called {name!r}: expected one in its folder")
        file = folder.path / name
        make_folder(file.parent)
        with whole_file(file) as opened:
            opened.write(to_bytes(content))
    names = list(files)
    single = len(names) == 1 and names[0].endswith(".gguf")
    return folder.path / names[0] if single else folder.path


def model_of(source: Source) -> Any:
    """What workers are told of a source: its name, or the module where it is one in memory."""
    return source.skeleton() if source.kind == "module" else source.name
