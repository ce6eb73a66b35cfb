"""A model and what is made of it don't share what a forward writes; calibration writes nothing."""

import pytest
import torch
from torch import Tensor, nn

import tauten
import tauten.methods
from tauten.core.errors import InputError
from tauten.models.state import state_kept


class Cached(nn.Module):
    """Writes each token into a cache, as models with a static cache do."""

    def __init__(self) -> None:
        super().__init__()
        self.key, self.out = nn.Linear(64, 64), nn.Linear(64, 64)
        self.register_buffer("cache", torch.zeros(4, 64))
        self.register_buffer("at", torch.zeros((), dtype=torch.long))

    def forward(self, x: Tensor) -> Tensor:
        self.cache[self.at] = self.key(x)[0]
        self.at += 1
        return self.out(self.cache[: self.at].mean(0, keepdim=True))


class Tracking(nn.Module):
    """Puts a new tensor in the place of a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 64)
        self.register_buffer("mean", torch.zeros(64))

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x)
        self.mean = 0.9 * self.mean + 0.1 * y.detach().mean(0)
        return y - self.mean


class Blocks(nn.Module):
    """State inside of blocks that form a chain."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Cached() for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x


KINDS = [Cached, Tracking, Blocks]
TOKENS = list(torch.randn(8, 1, 64, generator=torch.manual_seed(1)))


def build(kind: type[nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return kind().eval()


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: buffer.clone() for name, buffer in model.named_buffers()}


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_calls_of_the_result_do_not_reach_the_model(kind: type[nn.Module]) -> None:
    model, alone = build(kind), build(kind)
    packed = tauten.quantize(model, 8)
    for x in TOKENS[:3]:
        expected = alone(x)
        packed(x)
        torch.testing.assert_close(model(x), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_calibration_leaves_no_trace_in_the_model_or_the_result(kind: type[nn.Module]) -> None:
    model = build(kind)
    before = state(model)
    # More tokens than a cache holds: each batch finds the state that the model had.
    packed = tauten.quantize(model, technique=tauten.GPTQ(8), data=TOKENS)
    for made in (model, packed):
        after = state(made)
        assert all(torch.equal(after[name], value) for name, value in before.items())


def test_batch_norms_in_training_are_not_shared() -> None:
    model = nn.Sequential(nn.Linear(64, 64), nn.BatchNorm1d(64)).train()
    before = state(model)
    packed = tauten.quantize(model, technique=tauten.GPTQ(8), data=[torch.randn(16, 64)])
    packed.train()(torch.randn(16, 64))
    after = state(model)
    assert model.training and all(torch.equal(after[name], before[name]) for name in before)


def test_what_raises_leaves_the_state_too() -> None:
    model = build(Cached)
    with pytest.raises(IndexError), state_kept(model), torch.no_grad():
        for x in TOKENS:
            model(x)
    assert int(model.at) == 0 and not bool(model.cache.any())


@pytest.mark.parametrize("call", ["quantize", "compress", "parallelize", "distribute"])
def test_tensors_without_values_are_named(call: str) -> None:
    lazy = nn.Sequential(nn.Linear(4, 4), nn.LazyLinear(4))
    with pytest.raises(InputError, match=r"'1\.weight'.*no shape yet: call the model once"):
        getattr(lazy, call)()
    with pytest.raises(InputError, match=r"'weight'.*meta device.*load it first"):
        getattr(nn.Linear(4, 4, device="meta"), call)()
