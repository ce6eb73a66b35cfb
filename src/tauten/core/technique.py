"""The interface that every technique of every pillar implements."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar

from torch import Tensor, nn

from tauten.core.inputs import LayerInputs


@dataclass(frozen=True)
class Technique(ABC):
    """A way to change a model. Its fields are its knobs: settings and method are one object.

    Attributes:
        name: The word that recipes and the command line use.
        pillar: The call it belongs to: quantize, compress, parallelize or distribute.
        caution: What to know before the result is used; the report says it. Empty for most.
    """

    name: ClassVar[str]
    pillar: ClassVar[str]
    caution: ClassVar[str] = ""

    def knobs(self) -> dict[str, Any]:
        """Its settings, as recipes write them."""
        return asdict(self)

    @classmethod
    def space(cls) -> Mapping[str, Sequence[Any]]:
        """Values of each knob that a search may try."""
        return {}

    def __str__(self) -> str:
        shown = [
            f"{field.name}={getattr(self, field.name)}"
            for field in fields(self)
            if getattr(self, field.name) != (0 if field.name == "bits" else field.default)
        ]
        return f"{self.name}({', '.join(shown)})" if shown else self.name


@dataclass(frozen=True)
class WeightTechnique(Technique):
    """A technique that packs one weight at a time; most are.

    The walk over the model, streaming, resuming and saving come for free: a subclass only says
    how one weight is encoded, and what its layer does with activations.
    """

    @property
    def activation_dtype(self) -> str:
        """`float` keeps activations as they are; `int8` rounds each token's to 8 bits."""
        return "float"

    @abstractmethod
    def encode(self, weight: Tensor, inputs: LayerInputs | None = None) -> nn.Module:
        """Pack a weight: (out, in, ...) floating -> a `formats.PackedWeight`.

        Args:
            weight: Isn't changed.
            inputs: What its layer sees, for a `CalibratedTechnique`; None where it isn't known
                (embeddings, convolutions with groups, no data).
        Raises:
            NotApplicableError: The technique can't pack this weight; it is then left as it is,
                and the report says why.
        """


@dataclass(frozen=True)
class CalibratedTechnique(WeightTechnique):
    """A technique that looks at calibration data: the walk runs it block by block.

    Without data it does what it can, as if all inputs were equally strong and independent.
    """

    @property
    def needs_shift(self) -> bool:
        """Whether it also wants `LayerInputs.shift`, which takes a second pass a block."""
        return False


@dataclass(frozen=True)
class TuningTechnique(Technique):
    """A technique that trains a whole packed model; a recipe's run in order once all is packed."""

    @abstractmethod
    def tune(self, packed: nn.Module, original: nn.Module, batches: Sequence[Any]) -> None:
        """Change a packed model's tensors in place, shapes and dtypes as they are.

        Args:
            packed: In memory whole.
            original: As it was before packing; isn't changed.
            batches: Calls of the model (`models.calibration.CalibrationBatch`).
        Raises:
            NotApplicableError: It has nothing to tune.
        """
