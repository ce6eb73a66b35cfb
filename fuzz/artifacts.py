"""Readers of the folders that Tauten writes: each format of weights, whole and forged."""

import io
import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

import tauten
from fuzz import models
from fuzz.reader import Reader, plain
from tauten.core.digests import SEAL, sealed
from tauten.core.files import sha256_file
from tauten.faces import print_artifact, write_report
from tauten.models import artifact, covered

DATA = models.images(8)
# One recipe for each format of weights and each kind of structure that a module can be made into.
PACKED: dict[str, Callable[[], tauten.Recipe]] = {
    "rtn": lambda: tauten.Recipe.of(tauten.RTN(4, 32)),
    "rtn3": lambda: tauten.Recipe.of(tauten.RTN(3, 0, activation="int8")),
    "int8": lambda: tauten.Recipe.of(tauten.Int8()),
    "static": lambda: tauten.Recipe.of(tauten.StaticInt8()),
    "kquant": lambda: tauten.Recipe.of(tauten.KQuant(4)),
    "codebook": lambda: tauten.Recipe.of(tauten.Codebook(3)),
    "kmeans": lambda: tauten.Recipe.of(tauten.ShareKMeans(bits=4)),
    "rows": lambda: tauten.Recipe.of(tauten.ShareRows(share=0.5)),
    "ternary": lambda: tauten.Recipe.of(tauten.Ternary(32)),
    "binary": lambda: tauten.Recipe.of(tauten.Binary(32, residual=True)),
    "sparse": lambda: tauten.Recipe.of(tauten.PruneMagnitude(0.5)),
    "sparse24": lambda: tauten.Recipe.of(tauten.PruneSparseGPT(pattern="2:4", bits=4)),
    "channels": lambda: tauten.Recipe.of(tauten.PruneChannels(0.5), tauten.RTN(4, 32)),
}


def artifact_readers() -> Iterator[Reader]:
    """All of them."""
    for name, recipe in PACKED.items():
        make = partial(_make_packed, recipe)
        yield Reader(f"artifact {name}", make, _run_network, _KEPT, vouched=True)
        yield Reader(f"forged {name}", make, _run_network, _FORGED, seal=seal)
    coded = partial(_make_packed, PACKED["rtn"], entropy_coding=True)
    yield Reader("forged coded", coded, _run_network, _FORGED, seal=seal)
    yield Reader("artifact llama", _make_llama, _run_llama, _BESIDE, vouched=True)
    yield Reader("forged llama", _make_llama, _run_llama, _BESIDE, seal=seal)
    yield Reader("report", _make_searched, _report, _REPORTED, vouched=True)
    yield Reader("forged report", _make_searched, _report, _REPORTED, seal=seal)


_KEPT = (artifact.MANIFEST, artifact.WEIGHTS, artifact.RECIPE, artifact.TIMING)
_FORGED = (artifact.MANIFEST, artifact.WEIGHTS)
_BESIDE = (
    *(artifact.MANIFEST, artifact.WEIGHTS, "config.json", "generation_config.json"),
    *("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"),
)
_REPORTED = (artifact.MANIFEST, artifact.TIMING)


def _make_packed(recipe: Callable[[], tauten.Recipe], place: Path, **options: Any) -> None:
    tauten.quantize(models.network(), technique=recipe(), data=DATA, out=place, **options)


def _make_llama(place: Path) -> None:
    folder = place.with_name(place.name + ".source")
    models.llama_folder(folder)
    tauten.quantize(folder, technique=tauten.RTN(4, 32), out=place)


def _make_searched(place: Path) -> None:
    goal = tauten.Goal(max_drop=0.3)
    tauten.optimize(models.network(), models.images(), goal, out=place, effort="quick")


@torch.no_grad()
def _run_network(place: Path) -> Any:
    return plain(tauten.load(place, model=models.network())(models.IMAGES))


@torch.no_grad()
def _run_llama(place: Path) -> Any:
    source = artifact.source(place)
    model: Any = source.delivered(source.open())
    assert source.tokenizer is not None, "it was written with one"
    settings = model.generation_config.to_dict(), model.config.to_dict()
    output = model(models.TOKENS % model.config.vocab_size, use_cache=False).logits
    return plain([output, settings, models.read_by(source.tokenizer)])


def _report(place: Path) -> tuple[str, str]:
    console = Console(file=io.StringIO(), width=120)
    print_artifact(place, console)
    printed: Any = console.file
    return printed.getvalue(), write_report(place).read_text()


def seal(place: Path) -> None:
    """Put the digests of a damaged folder right, where its descriptions can still hold them."""
    _seal(place / artifact.TIMING, dict)

    def completed(manifest: dict[str, Any]) -> dict[str, Any]:
        manifest["weights"]["sha256"] = sha256_file(place / artifact.WEIGHTS)
        return {**manifest, "files": covered.digests(place)}

    _seal(place / artifact.MANIFEST, completed)


def _seal(file: Path, completed: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Seal what a file says, which `completed` puts right; one that says nothing stays."""
    try:
        said = {key: value for key, value in json.loads(file.read_bytes()).items() if key != SEAL}
        file.write_text(json.dumps(sealed(completed(said))))
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return
