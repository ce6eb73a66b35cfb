"""The folder that a run leaves: packed weights, a manifest, and what came with the model."""

import copy
import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from tauten.core.description import ANEW, checked, read_json
from tauten.core.digests import SEAL, digest_of, unsealed
from tauten.core.errors import CorruptError, InputError
from tauten.core.files import sha256_file
from tauten.models import covered
from tauten.models.companions import copy_companions, inside
from tauten.models.generation import use_native_decoder
from tauten.models.manifest import Manifest, Timing
from tauten.models.outline import check_layers
from tauten.models.packing import install_empty
from tauten.models.reader import SafetensorsReader
from tauten.models.saving import refuse_saving
from tauten.models.shaped import reshaped_source, with_tensors
from tauten.models.source import Source, open_source

MANIFEST = covered.MANIFEST
WEIGHTS = "model.safetensors"
RECIPE = covered.RECIPE
TIMING = covered.TIMING
REPORT = "report.html"
FORMAT = 1


def is_artifact(folder: Path) -> bool:
    """Whether Tauten wrote a folder."""
    return (folder / MANIFEST).is_file()


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of an artifact, a `Manifest`.

    Raises:
        InputError: The folder is no artifact, or a newer Tauten wrote it.
        CorruptError: The manifest is damaged.
    """
    if not is_artifact(folder):
        raise InputError(f"{folder}: no {MANIFEST} there; pass a folder that Tauten wrote")
    file = inside(folder, MANIFEST)
    raw: dict[str, Any] = read_json(file, dict[str, Any])
    version = raw.get("format", FORMAT)
    if isinstance(version, int) and version > FORMAT:
        raise InputError(
            f"{folder}: format {version}, but this Tauten reads up to {FORMAT}; upgrade Tauten"
        )
    if "files" in raw and SEAL not in raw:
        raise CorruptError(f"{file}: damaged ({SEAL} is missing); {ANEW}")
    manifest = unsealed(raw, file, ANEW)
    checked(Manifest, manifest, file)
    trials, chosen = manifest.get("trials", []), manifest.get("chosen")
    if chosen is not None and chosen >= len(trials):
        raise CorruptError(f"{file}: damaged (chosen={chosen} is none of the trials); {ANEW}")
    if unknown := set(manifest.get("written_out", [])) - manifest["modules"].keys():
        raise CorruptError(
            f"{file}: damaged (written_out={min(unknown)!r} is none of the modules); {ANEW}"
        )
    return manifest


def check_files(folder: Path, manifest: dict[str, Any], only: str = "") -> None:
    """See `covered.check`; earlier versions wrote nothing to check by."""
    if "files" in manifest:
        covered.check(folder, manifest["files"], only)


def read_timing(folder: Path) -> dict[str, Any]:
    """Figures that differ from run to run, a `Timing`; empty where nothing was timed."""
    file = folder / TIMING
    if not file.is_file():
        return {}
    remedy = "delete it, or make the artifact anew"
    timing = unsealed(read_json(inside(folder, TIMING), dict[str, Any], remedy), file, remedy)
    checked(Timing, timing, file, remedy)
    return timing


def source(folder: Path, model: Any = None) -> Source:
    """An artifact as a source.

    Args:
        folder: The artifact.
        model: What it was made from, where that isn't a Hugging Face model: a module of the same
            shape, or `package.module:factory`. Its weights are replaced by the packed ones.
    Raises:
        InputError: `model` is needed, or doesn't fit.
        CorruptError: The weights aren't those that the manifest describes.
    """
    from tauten.models import huggingface, sentence

    manifest = read_manifest(folder)
    reader = SafetensorsReader([inside(folder, WEIGHTS)])
    if sha256_file(folder / WEIGHTS) != manifest["weights"]["sha256"]:
        raise CorruptError(f"{folder / WEIGHTS}: changed since it was written; make it anew")
    check_files(folder, manifest)
    identify = functools.partial(digest_of, manifest)
    if (folder / sentence.LAYOUT).is_file():
        original = _of_sentences(folder, identify, reader.size_bytes)
    elif (folder / "config.json").is_file():
        build = huggingface.skeleton_builder(huggingface.read_config(folder, reader), folder)
        reader.bounds.check_model(build, str(folder))
        original = Source(str(folder), "artifact", build, identify, reader.size_bytes)
        original.tokenizer = huggingface.tokenizer_loader(folder)
        original.save_companions = lambda out: copy_companions(folder, out)
    elif model is None:
        raise InputError(
            f"{folder} was made from a module, which a file can't hold; "
            "pass it too: tauten.load(folder, model=...) or --model package.module:factory"
        )
    else:
        original = open_source(model)
        if manifest.get("made_from"):  # of folders that say it
            check_layers(manifest["made_from"], original.skeleton(), str(folder))
    original = reshaped_source(original, manifest.get("structure", []))
    packed = packed_source(original, manifest["modules"], reader, str(folder))
    return dataclasses.replace(packed, written_out=tuple(manifest.get("written_out", [])))


def _of_sentences(folder: Path, identify: Callable[[], str], size_bytes: int) -> Source:
    from tauten.models import sentence

    model: Any = sentence.empty_model(folder, 64 * size_bytes + 2**24)
    return Source(
        name=str(folder),
        kind="artifact",
        skeleton=lambda: copy.deepcopy(model),
        identify=identify,
        size_bytes=size_bytes,
        save_companions=lambda out: copy_companions(folder, out),
        tokenizer=lambda: model.tokenizer,
    )


def packed_source(
    original: Source, specs: dict[str, dict[str, Any]], reader: SafetensorsReader, name: str
) -> Source:
    """The source of a packed model: an original's structure with packed layers and new tensors."""

    def skeleton() -> nn.Module:
        try:
            empty = install_empty(original.skeleton(), specs).eval()
        except CorruptError as error:
            if original.kind == "artifact":
                raise
            raise InputError(  # of a module that was passed
                f"the model isn't what {name} was made from ({error}): pass a module of the same "
                "class and sizes"
            ) from error
        return refuse_saving(use_native_decoder(empty))

    packed = dataclasses.replace(
        original, name=name, skeleton=skeleton, outline=None, written_out=()
    )
    return dataclasses.replace(with_tensors(packed, reader), kind="artifact")
