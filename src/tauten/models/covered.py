"""What a manifest says of the files beside an artifact's weights: none of them changed unnoticed.

Covered is what goes with a model, and the recipe. Not covered are `timing.json`, which holds a
digest of its own, the report, and whatever else may lie there: nothing of it is computed with.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tauten.core.digests import sealed
from tauten.core.errors import CorruptError
from tauten.core.files import sha256_file, write_json
from tauten.models.companions import carried, inside, is_licence

MANIFEST = "tauten.json"
RECIPE = "recipe.yaml"
CONFIG = "config.json"
TIMING = "timing.json"
_CHANGED = "changed since it was written: make the folder anew, or get the file again"
_MISSING = "is missing: make the folder anew, or get the file again"
_ADDED = "wasn't there when the folder was written, and may change what is computed: delete it"


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 by the names of all that is covered."""
    names = {name.as_posix() for name in carried(folder)} - {MANIFEST, TIMING}
    code = {file.name for file in folder.glob("*.py")}
    recipe = {RECIPE} if (folder / RECIPE).is_file() else set()
    return {name: sha256_file(inside(folder, name)) for name in sorted(names | code | recipe)}


def changes(folder: Path, recorded: Mapping[str, str]) -> dict[str, str]:
    """What is the matter with files, by their names; see `check`."""
    found = digests(folder)
    said = {}
    for name in sorted({*found, *recorded}):
        if name not in found and not _is_beside(name):
            said[name] = _MISSING
        elif name not in recorded and not is_licence(Path(name)):
            said[name] = _ADDED
        elif name in found and name in recorded and found[name] != recorded[name]:
            said[name] = _CHANGED
    return said


def check(folder: Path, recorded: Mapping[str, str], only: str = "") -> None:
    """Refuse an artifact in which a file was changed, is missing, or was added.

    Args:
        folder: The artifact.
        recorded: Digests by name, from its manifest.
        only: The file to look at; by default all.
    Raises:
        CorruptError: That is so.
    """
    for name, said in changes(folder, recorded).items():
        if only in ("", name):
            raise CorruptError(
                f"{folder / name} {said}; if that is on purpose, accept it: tauten accept {folder}"
            )


def accept(folder: Path, manifest: dict[str, Any]) -> list[str]:
    """Have the manifest of an artifact cover its files as they are now.

    Args:
        folder: The artifact.
        manifest: As `read_manifest` gives it.
    Returns:
        Names of what was changed, is missing, or was added.
    Raises:
        CorruptError: The weights were changed, or the configuration is missing.
    """
    said = changes(folder, manifest.get("files", {}))
    weights = manifest["weights"]
    if sha256_file(folder / weights["file"]) != weights["sha256"]:
        raise CorruptError(
            f"{folder / weights['file']} changed since it was written, and weights can't be "
            "accepted: make the folder anew"
        )
    if said.get(CONFIG) == _MISSING:  # without it nobody knows the model
        raise CorruptError(f"{folder / CONFIG} {_MISSING}")
    changed = list(said)
    write_json(folder / MANIFEST, sealed({**manifest, "files": digests(folder)}))
    return changed


def _is_beside(name: str) -> bool:
    """Whether nothing is computed with a file."""
    return name == RECIPE or is_licence(Path(name))
