"""Layers of every kind, and the packed ones that stand in for them, in every format."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

from tauten.compression import PruneMagnitude, ShareKMeans, ShareRows
from tauten.core.technique import WeightTechnique
from tauten.formats.packed import PackedWeight
from tauten.models.packing import matrix_of, packed_layer
from tauten.quantization import RTN, Binary, Codebook, KQuant, Ternary
from tauten.runtime.modules import PackedModule


class DerivedLinear(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, self.weight.to(input.dtype), self.bias) * 2


class DerivedTransposed(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return input @ self.weight.T + self.bias


class DerivedEmbedding(nn.Embedding):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) * 3


class DerivedConv(nn.Conv1d):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(F.pad(input, (1, 1)))


Kind = tuple[Callable[[], nn.Module], tuple[int, ...] | None]
KINDS: dict[str, Kind] = {
    "linear": (lambda: nn.Linear(64, 48), (3, 64)),
    "no bias": (lambda: nn.Linear(64, 48, bias=False), (3, 64)),
    "conv1d of transformers": (lambda: Conv1D(48, 64), (3, 64)),
    "conv1d": (lambda: nn.Conv1d(32, 16, 3, stride=2, padding=1), (2, 32, 9)),
    "conv2d": (lambda: nn.Conv2d(32, 16, 2, padding=1, padding_mode="circular"), (2, 32, 5, 5)),
    "conv3d": (lambda: nn.Conv3d(32, 8, 1), (2, 32, 2, 2, 2)),
    "groups": (lambda: nn.Conv1d(64, 16, 1, groups=2), (2, 64, 5)),
    "embedding": (lambda: nn.Embedding(40, 64, padding_idx=3), None),
    "derived linear": (lambda: DerivedLinear(64, 48), (3, 64)),
    "derived, transposed": (lambda: DerivedTransposed(64, 48), (3, 64)),
    "derived embedding": (lambda: DerivedEmbedding(40, 64), None),
    "derived conv1d": (lambda: DerivedConv(32, 16, 3), (2, 32, 9)),
}
INTEGERS: dict[str, WeightTechnique] = {
    f"{bits} bits": RTN(bits, 32, "integer") for bits in range(1, 9)
}
FORMATS: dict[str, WeightTechnique] = {
    **INTEGERS,
    "8 bits a row": RTN(8, 0, "none"),
    "two-level": KQuant(4),
    "codebook": Codebook(4),
    "wide codebook": ShareKMeans(bits=6),
    "ternary": Ternary(32),
    "binary": Binary(32),
    "sum": Binary(32, residual=True),
    "sparse": PruneMagnitude(0.5),
    "2:4": PruneMagnitude(0.5, "2:4"),
    "shared rows": ShareRows(share=0.5),
}


def encoded(layer: Any, form: str = "4 bits") -> PackedWeight:
    """The weight of a layer, packed."""
    return FORMATS[form].encode(matrix_of(layer, layer.weight.detach().float()))


def made(
    kind: str, form: str = "4 bits", activation: str = "float"
) -> tuple[nn.Module, PackedModule, Tensor]:
    """A layer with the weight that its packed twin stands for, the twin, an input."""
    build, shape = KINDS[kind]
    torch.manual_seed(0)
    layer: Any = build().eval()
    packed = packed_layer(layer, encoded(layer, form), activation)
    weight = packed.packed.dequantize(layer.weight.dtype)
    layer.weight = nn.Parameter(matrix_of(layer, weight).clone(), requires_grad=False)
    return layer, packed, torch.arange(6).view(2, 3) if shape is None else torch.randn(shape)


def close(found: Tensor, expected: Tensor, error: float = 1e-4) -> bool:
    """Whether a result is as the other one; AssertionError where dtype or shape differ."""
    assert found.dtype == expected.dtype and found.shape == expected.shape
    return bool((found.double() - expected.double()).norm() <= error * expected.double().norm())
