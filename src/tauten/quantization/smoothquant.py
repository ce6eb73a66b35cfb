"""SmoothQuant: 8-bit weights and activations, with outliers moved from these to those."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tauten.core.errors import InputError
from tauten.core.inputs import LayerInputs
from tauten.core.knobs import check_group_size
from tauten.core.technique import ScalingTechnique
from tauten.formats.integer import IntegerWeight
from tauten.runtime.reference import round_activations
from tauten.solvers.grid import fit_grid, nearest_values
from tauten.solvers.nearest import round_to_nearest
from tauten.solvers.scaling import centred, least_lossy, spread_rows, tied

STRENGTHS = tuple(step / 10 for step in range(11))
TRIED_ROWS = 256  # of each weight, and of the inputs, while strengths are compared


@dataclass(frozen=True)
class SmoothQuant(ScalingTechnique):
    """W8A8 whose activations are divided by a scale, and columns of weights multiplied by it.

    The norm or layer before takes the division over, so that inference costs nothing. Where none
    can, or without data, it is `int8`.

    Attributes:
        strength: How much of the range of inputs moves to the weight, 0 to 1; None tries several
            at each place, and none at all, on a sample of the inputs.
        group_size: As for `int8`.

    Source: Xiao et al. 2022, arXiv:2211.10438, eq. 4. Different here: the strength is chosen at
    each place, and also the products of value and output, up and down projections are smoothed.
    """

    name = "smoothquant"
    pillar = "quantize"
    own_bits = 8

    strength: float | None = None
    group_size: int = 32

    def __post_init__(self) -> None:
        if self.strength is not None and not 0 <= self.strength <= 1:
            raise InputError(
                f"smoothquant: strength={self.strength}: expected 0 to 1, or None to search"
            )
        check_group_size(self.name, self.group_size)

    @property
    def activation_dtype(self) -> str:
        return "int8"

    @classmethod
    def space(cls) -> Mapping[str, Sequence[Any]]:
        return {"group_size": (0, 32, 64)}

    def scale(self, weights: Sequence[Tensor], inputs: LayerInputs, channels: Tensor) -> Tensor:
        """peak of the inputs ** strength / peak of the weight ** (1 - strength)."""
        assert inputs.peak is not None and inputs.sample is not None, "the walk gathers them"
        sample = spread_rows(inputs.sample, TRIED_ROWS)
        rows = torch.cat([spread_rows(weight, TRIED_ROWS) for weight in weights])
        peak = tied(inputs.peak, channels)
        reach = tied(torch.cat(list(weights)).abs().amax(0), channels)

        def smoothing(strength: float) -> Tensor:
            return centred(peak**strength / reach ** (1 - strength))

        def loss(scale: Tensor) -> float:
            grid = fit_grid(rows * scale, 8, self.group_size, "none", "minmax")
            matrix = nearest_values(rows * scale, 8, self.group_size, *grid)
            x = round_activations(sample / scale, self.group_size or len(scale))
            return float((x @ matrix.t() - sample @ rows.t()).square().sum())

        if self.strength is not None:
            return smoothing(self.strength)
        return least_lossy([torch.ones_like(peak), *map(smoothing, STRENGTHS)], loss)

    def encode(self, weight: Tensor, inputs: LayerInputs | None = None) -> IntegerWeight:
        group_size = self.group_size if weight.dim() == 2 else 0
        return round_to_nearest(weight, 8, group_size, zero="none", clip="mse")
