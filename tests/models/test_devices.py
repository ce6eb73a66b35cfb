"""Models on a GPU, simulated: what is made of them, and where it lies."""

import logging
from pathlib import Path

import pytest
import torch
from simulated_gpu import GPU, OnGpu, simulated_gpu
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode

import tauten
from tauten.core.errors import InputError
from tauten.models.devices import to_cpu

pytest.importorskip("triton", reason="Triton isn't installed (there are wheels for Linux only)")
CPU = torch.device("cpu")


class Net(nn.Module):
    """Makes a tensor on the device that it was built for, scales by a plain one, counts calls."""

    def __init__(self, device: torch.device):
        super().__init__()
        torch.manual_seed(0)
        self.device, self.kind = device, device.type
        self.first, self.last = nn.Linear(64, 128), nn.Linear(128, 10)
        self.register_buffer("calls", torch.zeros(()))
        self.calls: Tensor
        self.scale = torch.full((128,), 0.5, device=device)

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        shift = torch.zeros(128, device=self.device) + torch.ones(128, device=self.kind)
        out: Tensor = self.last(self.first(x).relu() * self.scale + shift)
        return out


def net(device: torch.device = GPU) -> Net:
    return Net(device).eval().to(device)


def rows(count: int = 48) -> Tensor:
    return torch.randn(count, 64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("technique", ["rtn", "gptq", "static_int8", "codebook"])
def test_a_quantized_model_is_on_its_gpu_and_computes_what_a_cpus_one_does(technique: str) -> None:
    wanted = tauten.quantize(net(CPU), technique=technique, data=[rows()])(rows())
    with simulated_gpu() as gpu:
        model = net()
        made = tauten.quantize(model, technique=technique, data=[rows().to(gpu)])
        assert {t.device for t in (*made.parameters(), *made.buffers())} == {gpu}
        assert (made.device, made.kind, model.device) == (gpu, "cuda", gpu)
        got = made(rows().to(gpu))
        assert got.device == gpu
        torch.testing.assert_close(got.cpu(), wanted, rtol=0, atol=1e-4 * float(wanted.abs().max()))
        assert float(model.calls) == 0


def test_a_layer_without_a_kernel_there_keeps_the_model_on_the_cpu(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING, "tauten")
    with simulated_gpu() as gpu:
        made = tauten.quantize(net(), technique="ternary")
        assert {t.device for t in (*made.parameters(), *made.buffers())} == {CPU}
        assert "stays on the CPU: cuda:0 has no kernel for TernaryWeight (first)" in caplog.text
        wanted = made(rows())
        assert made.device == CPU
        made.device, made.kind, made.scale = gpu, "cuda", made.scale.to(gpu)
        got = made.to(gpu)(rows().to(gpu))
        torch.testing.assert_close(got.cpu(), wanted)


def test_compressing_and_optimizing_give_models_on_the_gpu() -> None:
    with simulated_gpu() as gpu:
        model = net()
        labelled = [(x.to(gpu), model(x.to(gpu)).argmax(-1)) for x in rows(600).split(60)]
        calls = float(model.calls)
        plain = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10)).to(gpu)
        pruned = tauten.compress(plain, technique="prune_channels", data=[rows().to(gpu)])
        found = tauten.optimize(model, labelled, tauten.Goal(max_drop=0.2), effort="quick").model
        for made in (pruned, found):
            assert isinstance(made, nn.Module)
            assert {t.device for t in (*made.parameters(), *made.buffers())} == {gpu}
            assert made(rows().to(gpu)).shape == (48, 10)
        assert float(model.calls) == calls


def test_a_folder_is_loaded_to_where_its_model_is(tmp_path: Path) -> None:
    with simulated_gpu() as gpu:
        made = tauten.quantize(net(), 4, out=tmp_path / "out")
        loaded = tauten.load(tmp_path / "out", model=net())
        x = rows().to(gpu)
        assert torch.equal(loaded(x).cpu(), made(x).cpu())


def test_what_stays_unpacked_is_the_originals_own() -> None:
    with simulated_gpu():
        model = net()
        made = tauten.quantize(model, 4, where="last")
        assert made.first.weight.held.data_ptr() == model.first.weight.held.data_ptr()
        assert made.calls.held.data_ptr() != model.calls.held.data_ptr(), "a forward writes it"


def test_workers_of_a_model_on_a_gpu_answer_where_the_inputs_are() -> None:
    with simulated_gpu() as gpu:
        model, x = net(), rows().to(gpu)
        wanted = model(x).cpu()
        laid_out = tauten.parallelize(model, workers=2, mode="data", example_inputs=x)
        dealt = tauten.distribute(model, workers=2)
        for spread in (laid_out, dealt):
            with spread:
                got = spread(x)
                assert isinstance(got, OnGpu)
                torch.testing.assert_close(got.cpu(), wanted)


def test_a_model_on_two_gpus_is_refused() -> None:
    with FakeTensorMode():
        model = nn.ParameterList(torch.empty(2, device=f"cuda:{number}") for number in (0, 1))
        with pytest.raises(InputError, match=r"on cuda:0 and .* on cuda:1: move it to one device"):
            to_cpu(model)
