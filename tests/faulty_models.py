"""Models that misbehave, importable by worker processes."""

import os
import sys
import time
from pathlib import Path

import torch
from torch import Tensor, nn


class Slow(nn.Module):
    """Takes a while, and says so in a file as it begins."""

    def __init__(self, started: Path, seconds: float = 0.5):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(2.0))
        self.started, self.seconds = str(started), seconds

    def forward(self, x: Tensor) -> Tensor:
        Path(self.started, str(os.getpid())).touch()
        time.sleep(self.seconds)
        return x * self.scale


class Dies(nn.Module):
    """Ends its process on negative inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(2.0))

    def forward(self, x: Tensor) -> Tensor:
        if (x < 0).any():
            print("out of cheese", file=sys.stderr, flush=True)
            os._exit(7)
        return x * self.scale


class Parts(nn.Module):
    """Returns a tree: tensors, a number, and a tensor without rows where it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x: Tensor, *, loss: bool = False) -> dict[str, object]:
        y = self.layer(x)
        whole = y.square().mean() if loss else y.argmax(-1)
        return {"y": y, "pair": (y.bfloat16(), y > 0), "whole": whole, "width": 3}
