"""What techniques do to a block as a whole, before and after its layers are packed one by one."""

import functools
from collections.abc import Mapping

import torch
from torch import nn

from tauten.core.errors import NotApplicableError
from tauten.core.inputs import LayerInputs
from tauten.core.recipe import Recipe
from tauten.core.technique import BlockTechnique, BlockTuning, ScalingTechnique
from tauten.models.calibration import Calibration
from tauten.models.folding import Folding, rescale
from tauten.models.part_tensors import PartTensors


class BlockSteps:
    """The steps of a recipe that look at blocks.

    Args:
        recipe: What to do.
        tensors: Of the model.
        calibration: Brings data to the blocks, as far as they form a chain.
    Attributes:
        scaled: Layers with scaled columns, by name: what was divided.
    """

    def __init__(self, recipe: Recipe, tensors: PartTensors, calibration: Calibration):
        self._recipe, self._tensors, self._calibration = recipe, tensors, calibration
        self._folding = Folding()
        self.scaled: dict[str, str] = {}

    def scale(self, part: str, seen: dict[str, LayerInputs]) -> dict[str, LayerInputs]:
        """Scale channels inside a block where techniques wish.

        What is scaled takes the place of the model's tensors, in the dtype that it computes in.

        Args:
            part: The block.
            seen: What its layers see, by name.
        Returns:
            What they see then.
        """
        techniques = {
            name: found[1].technique
            for name in self._inner(part, seen)
            if (found := self._recipe.step_for(f"{part}.{name}")) is not None
            and isinstance(found[1].technique, ScalingTechnique)
        }
        if not techniques or not self._calibration.calls.get(part):
            return seen
        with self._tensors.filled([part]), torch.no_grad():
            block = self._calibration.dense(part, torch.float32)
            run = functools.partial(self._calibration.try_block, part)
            folds = self._folding.folds(block, run)
            folds, inner = rescale(block, folds, techniques, self._inner(part, seen))
        changed = {f"{part}.{n}": t for fold in folds for n, t in fold.tensors(block).items()}
        self._tensors.replace(part, changed)
        self.scaled |= {f"{part}.{n}": f.producer for f in folds for n in f.consumers}
        return {f"{part}.{name}": found for name, found in inner.items()}

    def fit(self, part: str, seen: Mapping[str, LayerInputs]) -> dict[str, nn.Module]:
        """Packed weights of the layers that techniques pack together, by name."""
        examples = self._calibration.examples(part)
        if examples is None:
            return {}
        layers: dict[BlockTechnique, dict[str, LayerInputs]] = {}
        weights = set()  # of a weight that stands in several layers the first stands for all
        for name, inputs in self._inner(part, seen).items():
            found = self._recipe.step_for(f"{part}.{name}")
            technique = None if found is None else found[1].technique
            weight = self._tensors.model.get_submodule(f"{part}.{name}").weight
            if isinstance(technique, BlockTechnique) and technique.fits_blocks:
                if id(weight) not in weights:
                    layers.setdefault(technique, {})[name] = inputs
                weights.add(id(weight))
        fitted: dict[str, nn.Module] = {}
        for technique, inputs_of in layers.items():
            with self._tensors.filled([part]):
                block = self._calibration.dense(part, torch.float32).requires_grad_(False)
            packed = technique.encode_block(block, inputs_of, examples)
            fitted |= {f"{part}.{name}": weight for name, weight in packed.items()}
        return fitted

    def tune(self, part: str) -> list[str]:
        """Train a packed block in place; the names of techniques that did."""
        steps = [step for step in self._recipe.steps if step.matches(part)]
        techniques = [s.technique for s in steps if isinstance(s.technique, BlockTuning)]
        examples, done = self._calibration.examples(part), list[str]()
        if examples is None or not techniques:
            return done
        with self._tensors.filled([part]):
            block = self._calibration.tunable(part)
            # Held, so that no trained tensor takes over the id of one that it replaces.
            before = {id(tensor): tensor for tensor in block.parameters()}
            for technique in techniques:
                try:
                    technique.tune_block(block, examples)
                except NotApplicableError:
                    continue
                done.append(technique.name)
        tensors = block.named_parameters(prefix=part)
        self._tensors.replace(part, {n: t for n, t in tensors if id(t) not in before})
        return done

    @staticmethod
    def _inner(part: str, seen: Mapping[str, LayerInputs]) -> dict[str, LayerInputs]:
        """The same by names in the block."""
        return {name.removeprefix(f"{part}."): found for name, found in seen.items()}
