"""Candidates are scored by dense weights, and else as they are."""

from typing import Any

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from tauten.models.packing import matrix_of, packed_layer
from tauten.quantization import RTN
from tauten.runtime import kernels
from tauten.search.evaluator import compute_densely


@pytest.mark.parametrize("stream", [False, True])
@torch.no_grad()
def test_linear_layers_of_any_kind_compute_densely_and_keep_their_hooks(
    stream: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    layers: list[Any] = [Conv1D(64, 64), Conv1D(32, 64), nn.Linear(32, 64)]
    model, seen = nn.Sequential(), []
    for index, layer in enumerate(layers):
        packed = RTN(4, 32, "integer").encode(matrix_of(layer, layer.weight))
        layer.register_forward_hook(lambda module, args, y, index=index: seen.append(index))
        model.append(packed_layer(layer, packed, "float"))
        layer.weight = nn.Parameter(matrix_of(layer, packed.dequantize()))
    x = torch.randn(3, 64)
    expected = nn.Sequential(*layers)(x)
    seen.clear()
    compute_densely(model, stream)
    monkeypatch.delattr(kernels, "linear")
    torch.testing.assert_close(model(x), expected)
    assert seen == [0, 1, 2]
