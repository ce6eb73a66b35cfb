"""Batch norms are folded where that is exact, in the copy that is packed, and files tell of it."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from tiny_models import tiny_cnn
from torch import Tensor, nn

import tauten
from tauten.core.errors import InputError
from tauten.models.batchnorm import fold_batch_norms
from tauten.models.packing import packed_modules
from tauten.models.source import shared_copy
from tauten.models.store import BlockStore
from tauten.models.structure import packable_modules


def trained_norms(model: nn.Module) -> nn.Module:
    """A model whose batch norms do something."""
    generator = torch.Generator().manual_seed(3)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                if tensor is not None:
                    with torch.no_grad():
                        tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
    return model.eval()


def images(count: int = 8) -> Tensor:
    return torch.randn(count, 1, 12, 12, generator=torch.Generator().manual_seed(1))


def fold(model: nn.Module, x: Tensor) -> tuple[nn.Module, dict[str, nn.Module]]:
    twin = shared_copy(model)
    names = [name for name, _ in packable_modules(model)]

    def run(module: nn.Module) -> Any:
        with torch.inference_mode():
            return module(x)

    return twin, fold_batch_norms(twin, names, run)


class Odd(nn.Module):
    """A convolution and a norm, put together in some way."""

    def __init__(self, way: Callable[[Any, Tensor], Any], norm: nn.Module | None = None):
        super().__init__()
        self.conv, self.norm, self.way = nn.Conv2d(1, 4, 3), norm or nn.BatchNorm2d(4), way

    def forward(self, x: Tensor) -> Any:
        return self.way(self, x)


def chain(model: Any, x: Tensor) -> Tensor:
    result: Tensor = model.norm(model.conv(x))
    return result


def skip(model: Any, x: Tensor) -> Tensor:
    made = model.conv(x)
    result: Tensor = made + model.norm(made)
    return result


def in_place(model: Any, x: Tensor) -> Tensor:
    result: Tensor = model.norm(model.conv(x).relu_())
    return result


def twice(model: Any, x: Tensor) -> Tensor:
    result: Tensor = model.norm(model.conv(x)) + model.norm(model.conv(x + 1))
    return result


@pytest.mark.parametrize("way", [skip, in_place, twice])
def test_what_others_use_is_left(way: Callable[[Any, Tensor], Any]) -> None:
    assert not fold(trained_norms(Odd(way)), images())[1]


@pytest.mark.parametrize("norm", [None, nn.BatchNorm2d(4, affine=False)])
def test_a_fold_is_exact(norm: nn.Module | None) -> None:
    model, x = trained_norms(Odd(chain, norm)), images()
    before = model(x)
    twin, changed = fold(model, x)
    assert set(changed) == {"conv", "norm"} and isinstance(twin.norm, nn.Identity)
    assert torch.allclose(twin(x), before, atol=1e-5)
    assert torch.equal(model(x), before) and isinstance(model.norm, nn.BatchNorm2d)


def test_linear_layers_and_norms_without_statistics() -> None:
    mlp = nn.Sequential(nn.Linear(12, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 2))
    trained_norms(mlp)
    x = torch.randn(5, 12)
    twin, changed = fold(mlp, x)
    assert set(changed) == {"0", "1"} and torch.allclose(twin(x), mlp(x), atol=1e-5)
    none = Odd(chain, nn.BatchNorm2d(4, track_running_stats=False)).eval()
    assert not fold(none, images())[1]


def test_a_model_that_reads_its_weight_elsewhere_is_refused() -> None:
    def reads(model: Any, x: Tensor) -> Tensor:
        result: Tensor = model.norm(model.conv(x)) * model.conv.weight.sum()
        return result

    with pytest.raises(InputError, match="fold=False"):
        fold(trained_norms(Odd(reads)), images())


def test_folded_models_are_written_and_read(tmp_path: Any) -> None:
    model, x = trained_norms(tiny_cnn()), images()
    before = model(x)
    written = tauten.quantize(model, technique=tauten.StaticInt8(), data=[x], out=tmp_path / "out")
    assert torch.equal(model(x), before)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in written.modules())
    loaded = tauten.load(tmp_path / "out", model=tiny_cnn())
    in_memory = tauten.quantize(model, technique=tauten.StaticInt8(), data=[x])
    with torch.no_grad():
        assert torch.equal(loaded(x), written(x)) and torch.equal(in_memory(x), written(x))
        assert (written(x) - before).norm() < 0.05 * before.norm()
    steps = {name: layer.step for name, layer in packed_modules(loaded)}
    assert steps["1.0.conv1"] is not None and steps["2"] is None  # groups


def test_a_killed_run_ends_with_the_same_bytes(tmp_path: Any, monkeypatch: Any) -> None:
    config = transformers.ResNetConfig(
        num_channels=1, embedding_size=16, hidden_sizes=[16, 32], depths=[1, 2], layer_type="basic"
    )
    torch.manual_seed(0)
    trained_norms(transformers.ResNetModel(config)).save_pretrained(tmp_path / "in")
    data = [{"pixel_values": images()}]

    def run(out: str) -> bytes:
        technique = tauten.StaticInt8(equalize=True)
        made = tauten.quantize(tmp_path / "in", technique=technique, data=data, out=tmp_path / out)
        assert not any(type(m) is nn.BatchNorm2d for m in made.modules())
        return (tmp_path / out / "model.safetensors").read_bytes()

    whole, write = run("whole"), BlockStore.write

    def dies(store: BlockStore, part: str, *args: Any, **record: Any) -> None:
        if part.endswith("1"):
            raise KeyboardInterrupt
        write(store, part, *args, **record)

    monkeypatch.setattr(BlockStore, "write", dies)
    with pytest.raises(KeyboardInterrupt):
        run("killed")
    monkeypatch.setattr(BlockStore, "write", write)
    assert run("killed") == whole


def test_calibration_leaves_the_statistics_of_a_model_in_training() -> None:
    model = trained_norms(tiny_cnn()).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    tauten.quantize(model, technique=tauten.GPTQ(8, 0), data=[images()])
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
