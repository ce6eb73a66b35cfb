"""What stands beside a model's weights and goes with it: configurations, tokenizer, templates.

Knows names only. Weights, code and model cards stay behind: they tell of another file than ours.
No link out of a model's folder is followed: who made the folder doesn't choose what else is read.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from typing_extensions import TypedDict

from tauten.core import description
from tauten.core.errors import CorruptError, InputError
from tauten.core.figures import listed
from tauten.core.files import copy_file, make_folder

MODULES = "modules.json"  # of sentence-transformers
TEMPLATES = "additional_chat_templates"
WEIGHTS = ".safetensors"
_SUFFIXES = {
    *(".json", ".jinja", ".txt", ".model"),  # the last three also vocabularies
    *(".spm", ".codes", ".bpe", ".tiktoken", ".tokenizer", ".vocab", ".tsv"),
}
PATTERNS = [*(f"*{suffix}" for suffix in sorted(_SUFFIXES)), "tokenizer*", "LICENSE*", "NOTICE*"]
_LICENCES = ("licen", "notice", "copying")
_STARTS = ("tokenizer", *_LICENCES)
_REMEDY = "copy or download it again"
_POINTER = b"version https://git-lfs."


@description.at_least
class Module(TypedDict):
    """An entry of `modules.json`."""

    path: str


def copy_companions(folder: Path, out: Path, with_heads: bool = True) -> None:
    """Copy what goes with a model.

    Args:
        folder: Of the model.
        out: An existing folder.
        with_heads: Also weights in the folders of sentence-transformers' modules; False where they
            are part of the model.
    """
    for name in carried(folder, with_heads):
        make_folder((out / name).parent)
        copy_file(folder / name, out / name)


def left_behind(folder: Path) -> str:
    """Names of what isn't copied and isn't the model's weights; empty where there is nothing."""
    going = {name.parts[0] for name in carried(folder)}
    names = [
        entry.name + "/" * entry.is_dir()
        for entry in sorted(folder.iterdir())
        if entry.name not in going
        and not entry.name.startswith(".")
        and not entry.name.endswith((WEIGHTS, ".safetensors.index.json"))
    ]
    return listed(names)


def module_folders(folder: Path) -> list[str]:
    """Folders of sentence-transformers' modules below a model's, in order; "" is that itself.

    Raises:
        CorruptError: `modules.json` is damaged or names a place outside the folder.
    """
    if not (folder / MODULES).is_file():
        return []
    modules: list[Module] = read_json(folder / MODULES, list[Module])
    names = [module["path"] for module in modules]
    for name in names:
        if not is_inside(name):
            raise CorruptError(f"{folder / MODULES} names {name!r}, which isn't in that folder")
    return names


def is_inside(name: str) -> bool:
    """Whether a name from a file can only be that of something in the same folder."""
    parts = Path(name).parts
    is_name = "\0" not in name and all(len(os.fsencode(part)) < 256 for part in parts)
    return is_name and not Path(name).is_absolute() and ".." not in parts


def inside(folder: Path, name: str | Path) -> Path:
    """A file or folder of a model's folder, by its name there, which may be a link within that.

    The hub's cache is made of links from `models--OWNER--NAME/snapshots/COMMIT` to `blobs` beside
    `snapshots`; those are followed.

    Raises:
        InputError: It leads out of the folder, or nowhere.
    """
    path, real, root = (
        folder / name,
        Path(os.path.realpath(folder / name)),
        os.path.realpath(folder),
    )
    if real.is_relative_to(root) or real.parent in map(_blobs, Path(root, "x").parents):
        if path.exists() or not path.is_symlink():
            return path
        raise InputError(f"{path} is a link to {real}, which isn't there; get the model anew")
    raise InputError(
        f"{path} is a link that leads out of the model's folder, to {real}; if you trust that, "
        f"make a folder without links: cp -rL {folder} COPY"
    )


def _blobs(snapshots: Path) -> Path | None:
    """Where the hub's cache keeps contents of files, given the folder of a model's commits."""
    is_cache = snapshots.name == "snapshots" and snapshots.parent.name.startswith("models--")
    return snapshots.parent / "blobs" if is_cache else None


def read_json(file: Path, kind: Any = Any) -> Any:
    """What a JSON file of a model's folder says; see `description.read_json`.

    Raises:
        InputError: It is a link out of its folder.
        CorruptError: It is damaged, or a pointer in the place of the file.
    """
    check_fetched(inside(file.parent, file.name))
    return description.read_json(file, kind, _REMEDY, wide=True)


def check_folder(folder: Path) -> None:
    """Refuse a folder in which a file that goes with the model is damaged.

    Raises:
        CorruptError: A JSON file is cut off, or any file is only a git-lfs pointer.
    """
    for name in carried(folder):
        check_fetched(folder / name)
        if name.suffix == ".json" and _ends_early(folder / name):
            read_json(folder / name)


def check_fetched(file: Path) -> None:
    """Refuse a file that git-lfs hasn't fetched yet.

    Raises:
        CorruptError: It is a pointer of git-lfs.
    """
    try:
        if file.exists() and not file.is_file():  # a pipe would be waited on for ever
            raise CorruptError(f"{file}: no file, but a folder, pipe or device; get it anew")
        with file.open("rb") as opened:
            begins = opened.read(len(_POINTER))
    except OSError as error:
        raise CorruptError(f"{file}: can't be read ({error}); get it anew") from None
    if begins == _POINTER:
        raise CorruptError(
            f"{file} is a git-lfs pointer, not the file itself; run `git lfs pull` in "
            f"{file.parent}, or download it again"
        )


def _ends_early(file: Path) -> bool:
    """Whether the end of a JSON file isn't that of an object or list; tokenizers are large."""
    with file.open("rb") as opened:
        opened.seek(max(0, file.stat().st_size - 64))
        return not opened.read().rstrip().endswith((b"}", b"]"))


def carried(folder: Path, with_heads: bool = True) -> Iterator[Path]:
    """Names of the files that go with a model, from its folder; as for `copy_companions`."""
    heads = [name for name in module_folders(folder) if name and (folder / name).is_dir()]
    for name in dict.fromkeys(["", *heads, TEMPLATES]):
        for file in sorted(inside(folder, name).glob("*")):
            is_head = name in heads and file.suffix == WEIGHTS and with_heads
            leads_nowhere = file.is_symlink() and not file.exists()
            if (file.is_file() or leads_nowhere) and (is_head or _is_companion(file)):
                yield inside(folder, file.relative_to(folder)).relative_to(folder)


def is_licence(name: Path) -> bool:
    """Whether a file that goes with a model only says what may be done with it."""
    return name.name.lower().startswith(_LICENCES)


def _is_companion(file: Path) -> bool:
    if file.name.endswith(".index.json") or file.name.startswith("."):
        return False
    is_text = file.suffix.lower() in _SUFFIXES
    return is_text or (file.suffix != ".py" and file.name.lower().startswith(_STARTS))
