"""One layer at several places is packed at all of them and stored once; masks are no weights."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import tauten
from tauten.models.packing import packed_modules


class TwoNames(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(64, 64)
        self.second = self.first
        self.head = nn.Linear(64, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.second(torch.relu(self.first(x)))))


def twice() -> nn.Module:
    layer = nn.Linear(64, 64)
    return nn.Sequential(layer, nn.ReLU(), layer, nn.Linear(64, 8))


class Repeated(nn.Module):
    """One block that is called four times."""

    def __init__(self) -> None:
        super().__init__()
        block = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 64))
        self.blocks = nn.ModuleList([block] * 4)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + block(x)
        return x


X = torch.randn(128, 64, generator=torch.manual_seed(1))
CALLS = {
    "without data": {"bits": 8},
    "calibrated": {"technique": tauten.GPTQ(8), "data": [X]},
}


@pytest.mark.parametrize("how", CALLS)
@pytest.mark.parametrize("build", [TwoNames, twice, Repeated])
def test_one_layer_at_two_places_is_packed_at_both(build, how: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = build().eval()
    packed = tauten.quantize(model, **CALLS[how])
    left = [m for _, m in packed.named_modules(remove_duplicate=False) if type(m) is nn.Linear]
    assert not left
    own = {id(m) for m in model.modules() if type(m) is nn.Linear}
    assert len({id(layer.packed) for _, layer in packed_modules(packed)}) == len(own)
    with torch.no_grad():
        torch.testing.assert_close(packed(X), model(X), atol=0.05, rtol=0.05)
    tauten.quantize(model, **CALLS[how], out=tmp_path / "out")
    assert torch.equal(tauten.load(tmp_path / "out", model=model)(X), packed(X))


class Masked(nn.Module):
    """A causal mask in a buffer, as in openai-whisper's decoder."""

    def __init__(self, persistent: bool):
        super().__init__()
        self.table, self.out = nn.Embedding(50, 64), nn.Linear(64, 50)
        mask = torch.full((12, 12), -torch.inf).triu(1)
        self.register_buffer("mask", mask, persistent=persistent)

    def forward(self, index: Tensor) -> Tensor:
        x = self.table(index)
        return self.out((x @ x.transpose(1, 2) + self.mask).softmax(-1) @ x)


@pytest.mark.parametrize("persistent", [False, True])
def test_a_mask_in_a_buffer_is_no_damage(persistent: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, index = Masked(persistent).eval(), torch.randint(0, 50, (2, 12))
    out = tmp_path / "out"
    with torch.no_grad():
        for options in ({}, {"technique": tauten.GPTQ(8), "data": [index]}, {"out": out}):
            packed = tauten.quantize(
                model, **({"bits": 8} | options if "data" not in options else options)
            )
            torch.testing.assert_close(packed(index), model(index), atol=0.05, rtol=0.05)
        assert torch.equal(tauten.load(out, model=model)(index), packed(index))
