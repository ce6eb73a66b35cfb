"""What tests of structured pruning share: copies as techniques get them, and calls with data."""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from tauten.core.technique import ShapingTechnique
from tauten.data.tensors import main_output
from tauten.models.calibration import CalibrationBatch
from tauten.models.source import shared_copy


def output(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return main_output(model(x))


def pruned(model: nn.Module, technique: ShapingTechnique, *data: Tensor) -> Any:
    """A pruned copy that shares the model's tensors; the model must stay as it is."""
    copies = copy.deepcopy(model.state_dict())
    made = shared_copy(model)
    technique.reshape(made, [CalibrationBatch((x,), {}) for x in data])
    assert all(torch.equal(tensor, copies[name]) for name, tensor in model.state_dict().items())
    return made


def change(model: nn.Module, made: nn.Module, x: Tensor) -> float:
    """Relative change of the outputs."""
    exact = output(model, x)
    return float((output(made, x) - exact).norm() / exact.norm())
