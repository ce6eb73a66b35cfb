"""Static int8: activations rounded by one step a layer, found on data before the model runs."""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from tauten.core.errors import InputError
from tauten.core.inputs import LayerInputs
from tauten.core.technique import CalibratedTechnique
from tauten.formats.integer import IntegerWeight
from tauten.formats.packed import PackedWeight
from tauten.models.batchnorm import NORMS, fold_batch_norms
from tauten.models.equalization import equalize
from tauten.solvers.activation_range import OBSERVERS, fixed_step
from tauten.solvers.nearest import round_to_nearest


@dataclass(frozen=True)
class StaticInt8(CalibratedTechnique):
    """8-bit weights, one symmetric scale a row; 8-bit activations, one fixed step a layer (W8A8).

    A layer whose inputs weren't seen (no data, convolutions with groups or in 3 dimensions) rounds
    its activations as `int8` does, if at all.

    Source: Nagel et al. 2021, arXiv:2106.08295, sections 3.1 and 3.3, with symmetric activations.

    Attributes:
        observer: What chooses the step: `percentile`, `mse` or `minmax`.
        percentile: Share of the values that are represented, for the observer of that name.
        fold: Fold batch norms into the layer before them, in the packed copy; needs data.
        equalize: Give the channels between two layers equal ranges in both weights; needs data.
        bias_correction: Add the mean error of the rounded weight's outputs to the bias.
    """

    name = "static_int8"
    pillar = "quantize"
    own_bits = 8

    observer: str = "mse"
    percentile: float = 0.9999
    fold: bool = True
    equalize: bool = False
    bias_correction: bool = True

    def __post_init__(self) -> None:
        if self.observer not in OBSERVERS:
            known = ", ".join(OBSERVERS)
            raise InputError(f"static_int8: observer={self.observer!r}: expected one of {known}")
        if not 0 < self.percentile <= 1:
            raise InputError(
                f"static_int8: percentile={self.percentile}: expected more than 0, at most 1"
            )

    @property
    def activation_dtype(self) -> str:
        return "static"

    @property
    def needs_magnitudes(self) -> bool:
        return True

    def prepares(self, model: nn.Module) -> bool:
        return self.equalize or (self.fold and any(type(m) in NORMS for m in model.modules()))

    def prepare_model(
        self, model: nn.Module, names: Collection[str], run: Callable[[nn.Module], Any] | None
    ) -> dict[str, nn.Module]:
        changed: dict[str, nn.Module] = {}
        if run is not None and self.fold:
            changed |= fold_batch_norms(model, names, run)
        if run is not None and self.equalize:
            changed |= equalize(model, names, run)
        return changed

    def encode(self, weight: Tensor, inputs: LayerInputs | None = None) -> IntegerWeight:
        return round_to_nearest(weight, bits=8, group_size=0, zero="none", clip="minmax")

    def activation_step(self, inputs: LayerInputs | None) -> Tensor | None:
        if inputs is None or inputs.magnitudes is None:
            return None
        return fixed_step(inputs.magnitudes, self.observer, self.percentile)

    def bias_change(
        self, weight: Tensor, packed: PackedWeight, inputs: LayerInputs | None
    ) -> Tensor | None:
        if not self.bias_correction or inputs is None or inputs.mean is None:
            return None
        return mean_output_change(weight, packed, inputs.mean)


def mean_output_change(weight: Tensor, packed: PackedWeight, mean: Tensor) -> Tensor:
    """E[W x] - E[W' x], what a rounded weight takes from each output in the mean.

    Args:
        weight: (out, in, ...) floating.
        packed: The same, rounded.
        mean: (in,) of the inputs.
    Returns:
        (out,) float32.
    Source: Nagel et al. 2019, arXiv:1906.04721, section 4.2, with the mean from data.
    """
    lost = weight.flatten(1).float() - packed.dequantize().flatten(1)
    return lost @ mean
