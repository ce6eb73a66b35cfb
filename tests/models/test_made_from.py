"""A folder that was made from a module takes a module that is built the same, and no other."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import tauten
from tauten.core.errors import InputError


class Net(nn.Module):
    def __init__(self, *layers: nn.Module):
        super().__init__()
        self.layers = nn.Sequential(*layers)
        self.calls = 0  # what a user's own class keeps doesn't count

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        out: Tensor = self.layers(x)
        return out


class Other(Net):
    pass


def net(
    kind: type[Net] = Net,
    act: nn.Module | None = None,
    eps: float = 1e-5,
    bias: bool = True,
    width: int = 64,
    p: float = 0.1,
) -> Net:
    first = nn.Linear(32, width, bias=bias)
    layers = first, act or nn.ReLU(), nn.Dropout(p), nn.LayerNorm(width, eps), nn.Linear(width, 4)
    return kind(*layers).eval()


OTHERS = {
    "layers.1: class is 'Sigmoid', and was 'ReLU'": {"act": nn.Sigmoid()},
    "layers.3: eps is 10.0, and was 1e-05": {"eps": 10.0},
    "layers.0: out_features is 48, and was 64": {"width": 48},
    r"layers.0: without is \['bias'\], and was \[\]": {"bias": False},
    "the model itself: class is 'Other', and was 'Net'": {"kind": Other},
}


@pytest.mark.parametrize("message", OTHERS)
def test_another_module_is_refused_by_what_differs(tmp_path: Path, message: str) -> None:
    tauten.quantize(net(), 4, out=tmp_path / "out")
    with pytest.raises(InputError, match=message):
        tauten.load(tmp_path / "out", model=net(**OTHERS[message]))  # type: ignore[arg-type]


def test_what_computes_the_same_is_taken(tmp_path: Path) -> None:
    model, x = net(), torch.randn(3, 32)
    made = tauten.quantize(model, 4, out=tmp_path / "out")
    again = net(act=nn.ReLU(inplace=True), p=0.0)
    again.calls = 12
    with torch.no_grad():
        assert torch.equal(tauten.load(tmp_path / "out", model=again)(x), made(x))
