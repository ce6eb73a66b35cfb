"""What the layers of a model see, found once for all recipes that pack each layer apart."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from typing_extensions import NotRequired, TypedDict

from tauten.core.description import Count, checked, parse_json, read_json
from tauten.core.errors import CorruptError
from tauten.core.files import make_folder, write_json
from tauten.core.inputs import LayerInputs
from tauten.core.recipe import Recipe
from tauten.core.technique import CalibratedTechnique
from tauten.models.calibration import Calibration, CalibrationBatch, Filled
from tauten.models.kept_tensors import read_tensors, write_tensors

MAX_BYTES = 8 * 2**30  # a model whose inputs take more is observed for each recipe anew
_INDEX = "layers.json"  # is there once all layers were observed
_REMEDY = "delete its folder"


class _Plain(TypedDict):
    """What isn't a tensor of a `LayerInputs`."""

    tokens: Count
    note: NotRequired[str]


def can_share(recipe: Recipe, model: nn.Module) -> bool:
    """Whether layers see for a recipe what they see for any other that this is true of.

    Args:
        recipe: That will be applied.
        model: Perhaps with empty tensors.
    """
    techniques = (step.technique for step in recipe.steps)
    calibrated = [t for t in techniques if isinstance(t, CalibratedTechnique)]
    if any(t.needs_magnitudes or t.prepares(model) for t in calibrated):
        return False
    return recipe.is_level and not recipe.shaping


class KeptCalibration(Calibration):
    """Keeps on disk what layers see in the original model, for the next walk to read.

    Layers that are packed apart see the same whatever the others are packed by: a second walk
    runs no block at all.

    Args:
        batches: As for `Calibration`; those of all walks that share the folder.
        folder: Of one model and one list of batches; made if absent.
    """

    def __init__(self, batches: Sequence[CalibrationBatch], folder: Path):
        super().__init__(batches)
        self._moves_on = True
        make_folder(folder)
        self._folder = folder
        self._max_bytes = min(MAX_BYTES, shutil.disk_usage(folder).free // 2)
        self._bytes = 0
        self._is_known = False
        self._left: set[str] = set()

    def start(
        self, model: nn.Module, blocks: Sequence[str], filled: Filled, names: Sequence[str]
    ) -> None:
        self._model, self._filled = model, filled
        index = self._folder / _INDEX
        self._is_known = index.is_file() and set(names) <= set(read_json(index, list[str], _REMEDY))
        if not self._is_known:
            self._names = self._left = set(names)
            super().start(model, blocks, filled, names)

    def observe(self, part: str, names: Sequence[str]) -> dict[str, LayerInputs]:
        if self._is_known:
            kept = _read(self._file(part)) if names else {}
            return {name: kept[name] for name in names if name in kept}
        found = super().observe(part, names)
        if names and self._bytes <= self._max_bytes:
            self._bytes += _write(self._file(part), found)
        # Parts that a killed walk had packed aren't observed again: then some names stay.
        self._left = self._left.difference(names)
        if not self._left and self._bytes <= self._max_bytes:
            write_json(self._folder / _INDEX, sorted(self._names))
        return found

    def remember(self, part: str) -> None:
        """Needn't: what the block makes was kept when it was observed."""

    def advance(self, part: str) -> None:
        if self._onward:
            self.states, self._onward = self._onward, []

    def _file(self, part: str) -> Path:
        return self._folder / f"{part or 'outer'}.safetensors"


def _write(file: Path, seen: dict[str, LayerInputs]) -> int:
    """Write inputs, those that layers have in common once; bytes taken."""
    numbers: dict[int, int] = {}
    tensors: dict[str, Tensor] = {}
    plain: list[dict[str, Any]] = []
    number_of: dict[str, int] = {}
    for name, inputs in seen.items():
        number = numbers.setdefault(id(inputs), len(numbers))
        number_of[name] = number
        if number < len(plain):
            continue
        values = vars(inputs)
        plain.append({key: v for key, v in values.items() if not isinstance(v, Tensor)})
        held = {key: v for key, v in values.items() if isinstance(v, Tensor)}
        tensors |= {f"{number}.{key}": tensor for key, tensor in held.items()}
    facts = {"number_of": json.dumps(number_of), "plain": json.dumps(plain)}
    write_tensors(file, tensors, facts)
    return sum(tensor.nbytes for tensor in tensors.values())


def _read(file: Path) -> dict[str, LayerInputs]:
    tensors, facts = read_tensors(file, _REMEDY)
    try:
        plains = checked(list[_Plain], parse_json(facts["plain"], str(file)), file, _REMEDY)
        number_of = checked(dict[str, Count], parse_json(facts["number_of"], str(file)), file)
        found = []
        for number, plain in enumerate(plains):
            own = f"{number}."
            held: dict[str, Any] = {
                n.removeprefix(own): t for n, t in tensors.items() if n.startswith(own)
            }
            found.append(LayerInputs(**plain, **held))
        return {name: found[number] for name, number in number_of.items()}
    except (LookupError, TypeError) as error:
        raise CorruptError(f"{file}: damaged ({error}); {_REMEDY}") from None
