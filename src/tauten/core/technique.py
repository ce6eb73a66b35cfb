"""The interface that every technique of every pillar implements."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn

from tauten.core.inputs import BlockExamples, LayerInputs


@dataclass(frozen=True)
class Technique(ABC):
    """A way to change a model. Its fields are its knobs: settings and method are one object.

    Attributes:
        name: The word that recipes and the command line use.
        pillar: The call it belongs to: quantize, compress, parallelize or distribute.
        caution: What to know before the result is used; the report says it. Empty for most.
        own_bits: Of a weight, where these are no knob of a quantization technique.
    """

    name: ClassVar[str]
    pillar: ClassVar[str]
    caution: ClassVar[str] = ""
    own_bits: ClassVar[float | None] = None

    @property
    def looks_at_inputs(self) -> bool:
        """Whether it wants to know what layers see, which takes passes over calibration data."""
        return False

    @property
    def packs_alone(self) -> bool:
        """Whether what becomes of a layer hangs on that layer and its inputs alone."""
        return False

    def knobs(self) -> dict[str, Any]:
        """Its settings, as recipes write them."""
        return asdict(self)

    @classmethod
    def space(cls) -> Mapping[str, Sequence[Any]]:
        """Values of each knob that a search may try."""
        return {}

    def __str__(self) -> str:
        return self.described(self.set_knobs())

    def set_knobs(self) -> dict[str, str]:
        """Knobs that differ from their defaults, and `bits`, as they are printed."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        defaults = {field.name: field.default for field in fields(self)} | {"bits": 0}
        return {name: str(value) for name, value in values.items() if value != defaults[name]}

    def described(self, knobs: Mapping[str, str]) -> str:
        """Its name and these knobs."""
        shown = ", ".join(f"{name}={value}" for name, value in knobs.items())
        return f"{self.name}({shown})" if shown else self.name


@dataclass(frozen=True)
class WeightTechnique(Technique):
    """A technique that packs one weight at a time; most are.

    The walk over the model, streaming, resuming and saving come for free: a subclass only says
    how one weight is encoded, and what its layer does with activations.
    """

    @property
    def packs_alone(self) -> bool:
        return True

    @property
    def activation_dtype(self) -> str:
        """What the layer does with activations.

        `float` keeps them as they are, `int8` rounds each token's to 8 bits, `static` rounds all
        to 8 bits by the `activation_step`. It is the knob `activation` where there is one.
        """
        return str(getattr(self, "activation", "float"))

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

    def activation_step(self, inputs: LayerInputs | None) -> Tensor | None:
        """The step () of `static` activations; None to round them as they come."""
        return None

    def bias_change(self, weight: Tensor, packed: Any, inputs: LayerInputs | None) -> Tensor | None:
        """What is added to a layer's bias for the rounding of its weight: (out,), or None."""
        return None


@dataclass(frozen=True)
class CalibratedTechnique(WeightTechnique):
    """A technique that looks at calibration data: the walk runs it block by block.

    Without data it does what it can, as if all inputs were equally strong and independent.
    """

    @property
    def looks_at_inputs(self) -> bool:
        return True

    @property
    def packs_alone(self) -> bool:
        return not self.needs_shift

    @property
    def needs_shift(self) -> bool:
        """Whether it also wants `LayerInputs.shift`, which takes a second pass a block."""
        return False

    @property
    def needs_magnitudes(self) -> bool:
        """Whether it also wants `LayerInputs.magnitudes`."""
        return False

    def prepares(self, model: nn.Module) -> bool:
        """Whether `prepare_model` may change this model, which is then loaded as a whole.

        Args:
            model: Perhaps with empty tensors.
        """
        return False

    def prepare_model(
        self, model: nn.Module, names: Collection[str], run: Callable[[nn.Module], Any] | None
    ) -> dict[str, nn.Module]:
        """Change the model as a whole before its weights are packed, such as fold batch norms.

        Args:
            model: A copy for this call, which may be changed.
            names: Layers that the technique is to pack.
            run: Calls a model on a calibration batch; None without data.
        Returns:
            By name the modules that are new or whose tensors are: the same layers, perhaps with a
            bias that they had not, or `nn.Identity`.
        """
        return {}


@dataclass(frozen=True)
class PruningTechnique(WeightTechnique):
    """A technique that zeroes a part of each weight, or more of those that matter less.

    It has the knobs `sparsity`, `pattern` and `allocation`. With `allocation="sensitivity"` the
    run finds a sparsity for each layer before the walk, and hands it on as `Step.layers`.
    """

    @abstractmethod
    def mask(self, weight: Tensor, inputs: LayerInputs | None) -> Tensor:
        """Which weights of a matrix are kept, (out, in) bool: a cheap guess where that will do.

        Args:
            weight: (out, in) floating.
            inputs: As for `encode`.
        """


@dataclass(frozen=True)
class BlockTechnique(CalibratedTechnique):
    """A technique that packs the layers of a block together, against what the block makes.

    `encode` packs what stands outside of blocks, layers whose inputs weren't seen, and all layers
    where blocks form no chain or there is no data.
    """

    @property
    def packs_alone(self) -> bool:
        return super().packs_alone and not self.fits_blocks

    @property
    def fits_blocks(self) -> bool:
        """Whether `encode_block` has something to do with these knobs."""
        return True

    @abstractmethod
    def encode_block(
        self, block: nn.Module, inputs: Mapping[str, LayerInputs], examples: BlockExamples
    ) -> Mapping[str, nn.Module]:
        """Pack layers of one block.

        Args:
            block: A float32 copy of the original, which may be changed.
            inputs: What the layers to be packed see, by their names in the block.
            examples: Of the block.
        Returns:
            Packed weights (`formats.PackedWeight`) by name; `encode` packs those left out.
        """


@dataclass(frozen=True)
class ScalingTechnique(CalibratedTechnique):
    """A technique that first scales the columns of weights, and their inputs the other way.

    The walk finds where that leaves a block as it is (`models.folding`), asks for a scale there,
    and then calls `encode` with the scaled weights and the statistics of the scaled inputs. What
    has no such place, or no data, is only encoded.
    """

    @property
    def packs_alone(self) -> bool:
        return False

    @abstractmethod
    def scale(self, weights: Sequence[Tensor], inputs: LayerInputs, channels: Tensor) -> Tensor:
        """Choose what columns are multiplied by; their inputs are divided by it.

        Args:
            weights: (out, in) float32, of all layers that read these inputs.
            inputs: What they see.
            channels: (in,) int64; columns of the same channel must get the same scale.
        Returns:
            (in,) float32, positive; ones where no scale serves.
        """


@dataclass(frozen=True)
class ShapingTechnique(Technique):
    """A technique that makes a smaller model of plain layers, before anything is packed.

    What may change: which children a `ModuleList` or `Sequential` holds, modules that become
    `nn.Identity`, linear layers that become a `models.low_rank_residual`, the sizes of tensors,
    plain attributes such as `out_features`, and which names share one tensor. `models.surgery`
    finds out what did, so that a file can be read back.
    """

    @abstractmethod
    def reshape(self, model: nn.Module, batches: Sequence[Any]) -> None:
        """Change a model in place.

        Args:
            model: A copy for this call, in memory whole, called like the original; its tensors
                may be shared with the original: replace them, don't write into them.
            batches: Calls of the model (`models.calibration.CalibrationBatch`); may be empty.
        Raises:
            NotApplicableError: It finds nothing to change in this model.
            InputError: It needs data and there is none.
        """


@dataclass(frozen=True)
class Questions:
    """What a technique will ask its teacher while it trains, so that workers can answer before.

    Attributes:
        settings: How the teacher is run: plain data for `search.asking.TeacherWorker`.
        batches: Those that will be trained on, by their index.
        folder: Where answers go, as `models.targets.Targets`, in the technique's own folder.
    """

    settings: dict[str, Any]
    batches: dict[int, Any]
    folder: str


@dataclass(frozen=True)
class TuningTechnique(Technique):
    """A technique that trains a whole model to do as another; a recipe's run in their order.

    Before the first step of a recipe that packs it trains the dense model, perhaps reshaped; after
    that, the packed one.

    Attributes:
        wants_all_data: Whether it trains on all data that the user gave. Else it gets the few
            batches that others calibrate on.
    """

    wants_all_data: ClassVar[bool] = False

    def questions(
        self, model: nn.Module, original: nn.Module, batches: Iterable[Any]
    ) -> Questions | None:
        """What `tune` with these arguments will ask; None where workers can't help."""
        return None

    @abstractmethod
    def tune(
        self,
        model: nn.Module,
        original: nn.Module,
        batches: Iterable[Any],
        folder: Path | None = None,
    ) -> None:
        """Change a model's tensors in place, shapes and dtypes as they are.

        Args:
            model: A copy for this call, in memory whole, perhaps packed; what isn't packed may be
                shared with the original: replace it, don't write into it.
            original: What the model is to do as; isn't changed.
            batches: Calls of the model (`models.calibration.CalibrationBatch`).
            folder: Of this call alone, for what lets a killed run go on; None keeps nothing.
        Raises:
            NotApplicableError: It has nothing to tune.
        """


@dataclass(frozen=True)
class BlockTuning(Technique):
    """A technique that trains each block once it is packed, before the next block is."""

    @abstractmethod
    def tune_block(self, block: nn.Module, examples: BlockExamples) -> None:
        """Change a packed block, shapes and dtypes as they are.

        Args:
            block: A copy whose `PackedWeight`s are those of the model: theirs are changed in
                place. Other tensors are in float32 and are replaced, not written into.
            examples: Of the block.
        Raises:
            NotApplicableError: It has nothing to tune in this block, which is left as it is.
        """
