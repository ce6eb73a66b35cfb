"""Channels between layers get equal ranges where that changes no output."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tauten
from tauten.models.equalization import equalize
from tauten.models.source import shared_copy


class Two(nn.Module):
    """Two convolutions of uneven channels, put together in some way."""

    def __init__(self, way: Callable[[Any, Tensor], Tensor]):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.way = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 4, 3), way
        with torch.no_grad():
            self.first.weight *= torch.logspace(-2, 2, 6)[:, None, None, None]

    def forward(self, x: Tensor) -> Tensor:
        return self.way(self, x)


def directly(model: Any, x: Tensor) -> Tensor:
    result: Tensor = model.second(model.first(x))
    return result


def rectified(model: Any, x: Tensor) -> Tensor:
    result: Tensor = model.second(torch.relu(model.first(x)))
    return result


def in_place(model: Any, x: Tensor) -> Tensor:
    result: Tensor = model.second(model.first(x).relu_())
    return result


def used_twice(model: Any, x: Tensor) -> Tensor:
    made = torch.relu(model.first(x))
    result: Tensor = model.second(made).mean() + made.mean()
    return result


def bounded(model: Any, x: Tensor) -> Tensor:
    result: Tensor = model.second(nn.functional.relu6(model.first(x)))
    return result


def equalized(model: nn.Module, x: Tensor) -> tuple[nn.Module, dict[str, nn.Module]]:
    twin = shared_copy(model)

    def run(module: nn.Module) -> Any:
        with torch.inference_mode():
            return module(x)

    return twin, equalize(twin, ["first", "second"], run)


@pytest.mark.parametrize("way", [directly, rectified, in_place])
def test_ranges_are_equal_and_outputs_the_same(way: Callable[[Any, Tensor], Tensor]) -> None:
    model, x = Two(way).eval(), torch.randn(2, 3, 8, 8)
    before = model(x)
    twin, changed = equalized(model, x)
    assert set(changed) == {"first", "second"}
    ranges = [
        w.flatten(1).abs().amax(1)
        for w in (twin.first.weight, twin.second.weight.mT.transpose(0, 1))
    ]
    assert torch.allclose(ranges[0], ranges[1], rtol=1e-4)
    assert (twin(x) - before).norm() < 1e-4 * before.norm()
    assert torch.equal(model(x), before)


@pytest.mark.parametrize("way", [used_twice, bounded])
def test_where_it_is_not_exact_nothing_changes(way: Callable[[Any, Tensor], Tensor]) -> None:
    assert not equalized(Two(way).eval(), torch.randn(2, 3, 8, 8))[1]


def test_fixed_steps_lose_less_on_uneven_channels() -> None:
    model, x = Two(rectified).eval(), torch.randn(8, 3, 8, 8)
    with torch.no_grad():
        model.second.weight /= torch.logspace(-2, 2, 6)[:, None, None]
        before = model(x)
        errors = []
        for even in (True, False):
            technique = tauten.StaticInt8("minmax", equalize=even)
            errors.append(
                (tauten.quantize(model, technique=technique, data=[x])(x) - before).norm()
            )
    assert errors[0] < 0.2 * errors[1]
