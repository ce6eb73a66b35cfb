"""Modules that can be asked directly."""

import torch
from tiny_models import tiny_mlp
from torch import nn

import tauten.methods


def test_no_arguments_are_needed() -> None:
    model = nn.Sequential(nn.Linear(10, 20), nn.Linear(20, 10))
    x = torch.randn(1, 10)
    for packed in (model.quantize(), model.compress()):
        assert packed(x).shape == (1, 10)
        assert type(packed[0]).__name__ == "PackedLinear"
        assert (packed(x) - model(x)).norm() < 0.05 * model(x).norm()


def test_arguments_reach_the_technique() -> None:
    assert tiny_mlp().quantize(bits=3)[0].packed.bits == 3
    assert tiny_mlp().compress(max_error=0.3)[0].packed.bits <= 3
    data = torch.randn(60, 10, generator=torch.manual_seed(0))
    assert tiny_mlp().optimize(data, tauten.methods.api.Goal(max_drop=0.1)).certified
    with tiny_mlp().parallelize(workers=2, mode="data") as parallel:
        assert parallel(data[:3]).shape == (3, 10) and parallel.plan.layout.data == 2
