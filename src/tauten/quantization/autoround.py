"""AutoRound: learn how each weight is rounded from what whole blocks make of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from transformers.pytorch_utils import Conv1D

from tauten.core.errors import InputError
from tauten.core.inputs import BlockExamples, LayerInputs
from tauten.core.knobs import check_activation, check_bits, check_group_size
from tauten.core.technique import BlockTechnique
from tauten.formats.integer import ZERO_KINDS, IntegerWeight
from tauten.models.packing import matrix_of
from tauten.solvers.block_fit import fit_block
from tauten.solvers.grid import Grid, fit_grid
from tauten.solvers.nearest import round_to_nearest, row_chunks
from tauten.solvers.sign_rounding import LearnedRounding, learn_alone, sign_step


@dataclass(frozen=True)
class AutoRound(BlockTechnique):
    """Offsets before rounding, and ends of grids, that keep the outputs of each block.

    A layer outside of blocks is fitted to its own outputs; a weight whose inputs weren't seen is
    rounded to nearest.

    Attributes:
        bits: 1 to 8.
        group_size: Columns that share a scale; 0 for one scale a row.
        zero: As for `rtn`.
        iterations: Steps of descent a block, each on one batch of about a 64th of the data.
        seed: Of the order of batches.
        activation: As for `rtn`.

    Source: SignRound, Cheng et al. 2023, arXiv:2309.05516. There 200 steps on 8 sequences each
    start from the whole span of the weights, and the step of least loss on its own batch is kept.
    Here fewer and smaller steps start from grids fitted to the importance of columns, what is kept
    is decided by batches held out, and errors are relative to the size of each token's state.
    """

    name = "autoround"
    pillar = "quantize"

    bits: int = 4
    group_size: int = 64
    zero: str = "integer"
    iterations: int = 128
    seed: int = 0
    activation: str = "float"

    def __post_init__(self) -> None:
        check_bits(self.name, self.bits)
        check_group_size(self.name, self.group_size)
        if self.zero not in ZERO_KINDS:
            known = ", ".join(ZERO_KINDS)
            raise InputError(f"autoround: zero={self.zero!r}: expected one of {known}")
        if not isinstance(self.iterations, int) or self.iterations < 1:
            got = f"autoround: iterations={self.iterations}"
            raise InputError(f"{got}: expected a positive integer")
        check_activation(self.name, self.activation)

    @classmethod
    def space(cls) -> Mapping[str, Sequence[Any]]:
        return {"bits": (8, 6, 5, 4, 3, 2), "group_size": (32, 64, 128)}

    def encode_block(
        self, block: nn.Module, inputs: Mapping[str, LayerInputs], examples: BlockExamples
    ) -> dict[str, IntegerWeight]:
        learned: dict[str, _Learned] = {}
        for name, seen in inputs.items():
            layer = block.get_submodule(name)
            matrix = _weight(layer).flatten(1)
            grid = self._grid(matrix, seen)
            rounding = LearnedRounding(matrix, self.bits, self.group_size, grid)
            learned[name] = _Learned(layer, rounding)
            parametrize.register_parametrization(layer, "weight", learned[name])
        roundings = [one.rounding for one in learned.values()]

        def update(step: int) -> None:
            sign_step(roundings, (1 - step / self.iterations) / self.iterations)

        parameters = [p for rounding in roundings for p in rounding.parameters()]
        fit_block(block, examples, parameters, update, self.iterations, self.seed)
        return {
            name: self._packed(one.shape, [one.rounding.rounded()]) for name, one in learned.items()
        }

    def encode(self, weight: Tensor, inputs: LayerInputs | None = None) -> IntegerWeight:
        if inputs is None:
            return round_to_nearest(weight, self.bits, self.group_size, self.zero, "mse")
        matrix = weight.flatten(1).float()
        scale, zero = self._grid(matrix, inputs)
        parts = []
        for rows in row_chunks(matrix):
            grid = scale[rows], None if zero is None else zero[rows]
            rounding = LearnedRounding(matrix[rows], self.bits, self.group_size, grid)
            learn_alone(rounding, matrix[rows], inputs.moment, self.iterations)
            parts.append(rounding.rounded())
        return self._packed(tuple(weight.shape), parts)

    def _grid(self, matrix: Tensor, inputs: LayerInputs) -> Grid:
        strength = inputs.moment.diagonal()
        return fit_grid(matrix, self.bits, self.group_size, self.zero, "mse", strength)

    def _packed(self, shape: tuple[int, ...], parts: list[tuple[Tensor, Grid]]) -> IntegerWeight:
        """From codes and grids of some rows after the other."""
        codes, scale = torch.cat([part[0] for part in parts]), torch.cat([p[1][0] for p in parts])
        zeros = [grid[1] for _, grid in parts if grid[1] is not None]
        zero = torch.cat(zeros) if zeros else None
        return IntegerWeight.from_codes(shape, self.bits, self.group_size, codes, scale, zero)


class _Learned(nn.Module):
    """Stands in for a layer's weight: the rounded one, laid out as the layer has it."""

    def __init__(self, layer: nn.Module, rounding: LearnedRounding):
        super().__init__()
        self.rounding, self.shape = rounding, tuple(_weight(layer).shape)
        self._transposed = isinstance(layer, Conv1D)

    def forward(self, weight: Tensor) -> Tensor:
        values: Tensor = self.rounding().view(self.shape)
        return values.t() if self._transposed else values


def _weight(layer: nn.Module) -> Tensor:
    """(out, in, ...)."""
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return matrix_of(layer, weight.detach())
