"""PruneChannels on convolutional networks: what can go without a loss goes without a loss."""

from typing import Any

import pytest
import torch
from pruned_models import change, output, pruned
from tiny_models import tiny_cnn, tiny_mlp
from torch import Tensor, nn

from tauten import InputError, NotApplicableError, PruneChannels
from tauten.models.calibration import CalibrationBatch
from tauten.models.multiply_adds import MultiplyAdds


def images(count: int = 8) -> Tensor:
    return torch.randn(count, 1, 12, 12, generator=torch.manual_seed(1))


class Down(nn.Module):
    """A block of a ResNet with a convolution on its skip."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, 2, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.skip = nn.Sequential(nn.Conv2d(inputs, outputs, 1, 2), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        inner = self.norm2(self.conv2(torch.relu(self.norm1(self.conv1(x)))))
        return torch.relu(inner + self.skip(x))


def resnet() -> nn.Module:
    """Batch norms that have seen data, a depthwise convolution, and a flatten of 3x3 positions."""
    torch.manual_seed(0)
    depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.BatchNorm2d(16), nn.ReLU()
    model = nn.Sequential(
        *(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()),
        *(Down(8, 16), *depthwise, Down(16, 24), nn.Flatten(), nn.Linear(24 * 9, 4)),
    )
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.3)
    with torch.no_grad():
        model(images(64))
    return model.eval()


def with_dead_channels(model: nn.Module) -> nn.Module:
    """Every second channel is zero behind its batch norm."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data[1::2] = 0
            module.bias.data[1::2] = 0
    return model


def with_double_channels(model: nn.Module) -> nn.Module:
    """Every second channel equals the one before it."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d | nn.Conv2d):
            for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
                if tensor.dim() and len(tensor) > 1:
                    tensor.data[1::2] = tensor.data[::2]
    return model


@pytest.mark.parametrize("data", [(), (images(),)], ids=["no data", "data"])
def test_dead_channels_go_without_a_trace(data: tuple[Tensor, ...]) -> None:
    model = with_dead_channels(resnet())
    made = pruned(model, PruneChannels(0.5, multiple=1, damping=1e-5), *data)
    assert change(model, made, images(3)) < 1e-3
    assert [made[0].out_channels, made[4].groups, made[7].conv1.out_channels] == [4, 8, 12]
    assert made[9].in_features == 12 * 9


def test_of_double_channels_one_stays_and_takes_over() -> None:
    model = with_double_channels(resnet())
    made = pruned(model, PruneChannels(0.5, multiple=1, damping=1e-5), images(64))
    assert change(model, made, images(3)) < 1e-2
    blind = pruned(model, PruneChannels(0.5, multiple=1))
    assert change(model, blind, images(3)) > 0.1


def test_data_beats_weights_alone() -> None:
    model = resnet()
    blind, fitted = (
        pruned(model, PruneChannels(0.25, multiple=1), *d) for d in ((), (images(64),))
    )
    fresh = torch.randn(64, 1, 12, 12, generator=torch.manual_seed(2))
    assert change(model, fitted, fresh) < 0.8 * change(model, blind, fresh)


def multiply_adds(model: nn.Module) -> int:
    return MultiplyAdds(model, CalibrationBatch((images(1),), {})).total


def test_multiply_adds_are_counted() -> None:
    layer = nn.Sequential(nn.Conv2d(1, 6, 3, 2, groups=1), nn.Conv2d(6, 6, 3, groups=3))
    assert multiply_adds(layer) == 6 * 9 * 25 + 6 * 2 * 9 * 9


def test_by_importance_leaves_as_many_multiply_adds_as_said_and_loses_less() -> None:
    model = resnet()
    with torch.no_grad():  # a layer of which little is needed, and that takes most of the time
        model[7].conv2.weight *= 0.2
    alike, chosen = (
        pruned(model, PruneChannels(0.3, by, multiple=2), images(64))
        for by in ("layer", "importance")
    )
    ratios = [multiply_adds(made) / multiply_adds(model) for made in (alike, chosen)]
    assert 0.4 < ratios[1] <= 0.49 < ratios[0] * 1.1
    fresh = torch.randn(64, 1, 12, 12, generator=torch.manual_seed(2))
    assert change(model, chosen, fresh) < 0.9 * change(model, alike, fresh)


def test_importance_needs_data_and_channels() -> None:
    with pytest.raises(InputError, match="by=importance needs data"):
        pruned(resnet(), PruneChannels(0.5, "importance"))
    with pytest.raises(NotApplicableError, match="as narrow as allowed"):
        pruned(resnet(), PruneChannels(0.9, "importance"), images())


def test_grouped_convolutions_lose_as_much_in_each_group() -> None:
    model = tiny_cnn()
    made = pruned(model, PruneChannels(0.5, multiple=1), images())
    assert made[2].weight.shape == (8, 2, 3, 3)
    assert made[2].groups == 4
    assert output(made, images()).shape == output(model, images()).shape


def test_widths_are_multiples() -> None:
    made = pruned(resnet(), PruneChannels(0.4))
    widths = {m.out_channels for m in made.modules() if isinstance(m, nn.Conv2d)}
    assert widths == {8, 16}


def test_what_cannot_be_narrowed_is_refused() -> None:
    with pytest.raises(NotApplicableError, match="multiple=32"):
        pruned(tiny_mlp(), PruneChannels(0.5, multiple=32))
    with pytest.raises(NotApplicableError, match=r"\[20\] channels.*multiple=32"):
        pruned(tiny_mlp(), PruneChannels(0.5, "importance", 32), torch.randn(2, 10))
    with pytest.raises(NotApplicableError, match="no channels to prune"):
        pruned(nn.Sequential(nn.Linear(3, 3)), PruneChannels())


@pytest.mark.parametrize(
    "knobs", [{"fraction": 1.0}, {"fraction": 0.0}, {"multiple": 0}, {"by": "size"}]
)
def test_bad_knobs(knobs: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=f"prune_channels: {next(iter(knobs))}"):
        PruneChannels(**knobs)
