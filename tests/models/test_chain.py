"""Blocks are calibrated one by one only where that was proved to be what the model does."""

import contextlib
from collections.abc import Callable
from types import MethodType
from typing import Any

import pytest
import torch
import transformers
from tiny_models import MODELS
from torch import Tensor, nn

import tauten
from tauten.data.calibration import calibration_batches
from tauten.models.calibration import Calibration
from tauten.models.packing import packed_modules
from tauten.models.structure import find_structure


def stage(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, 2, 1), nn.ReLU())


class Pyramid(nn.Module):
    """Each stage's output is used on the way; all have the same width, so that nothing breaks."""

    def __init__(self, *widths: int):
        super().__init__()
        pairs = zip((3, *widths), widths, strict=False)
        self.stages = nn.ModuleList(stage(*pair) for pair in pairs)
        self.lateral = nn.ModuleList(nn.Conv2d(width, 16, 1) for width in widths)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        found = []
        for block in self.stages:
            x = block(x)
            found.append(x)
        sides = [side(x) for side, x in zip(self.lateral, found, strict=True)]
        return self.head(sum(side.mean((2, 3)) for side in sides))


class Found:
    """Outputs that pytree doesn't know."""

    def __init__(self, scores: Tensor):
        self.scores = scores


class Boxed(Pyramid):
    def forward(self, x: Tensor) -> Any:
        return Found(super().forward(x))


class Voting(Pyramid):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).argmax(-1)


class Skipping(nn.Module):
    """A block also gets what an earlier one has made."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Bilinear(16, 16, 16) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        first = self.blocks[0](x, x)
        second = self.blocks[1](first, x)
        return self.blocks[2](second, first)


class Checked(nn.Module):
    """Checks the width that it gets."""

    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.ModuleList([stage(3, 16), stage(16, 32)])

    def forward(self, x: Tensor) -> Tensor:
        for index, block in enumerate(self.stages):
            x = block(x)
            assert x.shape[1] == 16 * 2**index, "unexpected width"
        return x


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.ModuleList([stage(3, 16), stage(16, 32)])
        self.head = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.stages:
            x = block(x)
        return self.head(x.mean((2, 3)))


IMAGES = torch.randn(4, 3, 16, 16, generator=torch.manual_seed(0))
VECTORS = torch.randn(4, 16, generator=torch.manual_seed(0))


def is_chain(model: nn.Module, x: Tensor) -> bool:
    calibration = Calibration(calibration_batches([x], model), dtype=torch.float32)
    blocks = find_structure(model).blocks
    assert len(blocks) > 1
    calibration.start(model, blocks, lambda _: torch.no_grad(), [f"{blocks[0]}.0"])
    assert (calibration.whole is None) == bool(calibration.calls)
    return bool(calibration.calls)


@pytest.mark.parametrize(
    ("build", "x", "chained"),
    [
        (Plain, IMAGES, True),
        (lambda: Pyramid(16, 16, 16), IMAGES, False),
        (lambda: Pyramid(16, 32, 64), IMAGES, False),
        (lambda: Boxed(16, 16, 16), IMAGES, False),
        (lambda: Voting(16, 16, 16), IMAGES, False),
        (Checked, IMAGES, False),
        (MODELS["gpt2"][0], MODELS["gpt2"][1](), True),
    ],
)
def test_states_used_on_the_way_are_no_chain(build: Callable[[], nn.Module], x, chained) -> None:
    torch.manual_seed(0)
    assert is_chain(build().eval(), x) is chained


def test_a_block_that_gets_an_earlier_state_too_is_no_link() -> None:
    torch.manual_seed(0)
    model = Skipping().eval()
    calibration = Calibration(calibration_batches([VECTORS], model), dtype=torch.float32)
    calibration.start(model, ("blocks.0", "blocks.1", "blocks.2"), lambda _: torch.no_grad(), [])
    assert not calibration.calls


@pytest.mark.parametrize("widths", [(16, 16), (16, 32)])
def test_a_pyramid_is_calibrated_on_what_its_layers_see(widths: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    model = Pyramid(*widths).eval()
    packed = tauten.quantize(model, technique=tauten.GPTQ(8, group_size=16), data=[IMAGES])
    with torch.no_grad():
        torch.testing.assert_close(packed(IMAGES), model(IMAGES), atol=0.02, rtol=0.05)


def t5() -> nn.Module:
    size = {"vocab_size": 64, "d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2}
    return transformers.T5ForConditionalGeneration(transformers.T5Config(**size, num_heads=2))


def test_blocks_that_return_several_values_are_calibrated() -> None:
    torch.manual_seed(0)
    model, ids = t5().eval(), torch.arange(24).view(2, 12)
    data = [{"input_ids": ids, "decoder_input_ids": ids}]
    packed = tauten.quantize(model, technique=tauten.GPTQ(8, group_size=16), data=data)
    assert len(list(packed_modules(packed))) > 20
    with torch.no_grad():
        expected = model(**data[0]).logits
        error = (packed(**data[0]).logits - expected).norm() / expected.norm()
    assert error < 0.05


def test_data_that_the_model_cannot_take_is_named() -> None:
    data = [IMAGES, torch.ones(4, 5, 16, 16)]
    with pytest.raises(tauten.InputError, match="can't be called with batch 2 of the calibration"):
        tauten.quantize(Pyramid(16, 16), technique=tauten.GPTQ(4, group_size=16), data=data)


class Fourier(nn.Module):
    """Blocks of an operation that has no 16 bits."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(16, 16)

        def forward(self, x: Tensor) -> Tensor:
            return x + torch.fft.fft(self.linear(x)).real

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(self.Block() for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x


def test_blocks_that_do_not_compute_in_16_bits_are_calibrated_in_32() -> None:
    torch.manual_seed(0)
    model = Fourier().eval()
    calibration = Calibration(calibration_batches([VECTORS], model), dtype=torch.bfloat16)
    blocks = find_structure(model).blocks
    calibration.start(model, blocks, lambda _: contextlib.nullcontext(), ["blocks.0.linear"])
    assert calibration.calls and calibration.dtype is torch.float32
    seen = calibration.observe("blocks.0", ["blocks.0.linear"])["blocks.0.linear"]
    torch.testing.assert_close(seen.moment, VECTORS.T @ VECTORS / 4)
    calibration.advance("blocks.0")


def test_blocks_that_compute_in_16_bits_do() -> None:
    model = MODELS["gpt2"][0]()
    calibration = Calibration(
        calibration_batches([MODELS["gpt2"][1]()], model), dtype=torch.bfloat16
    )
    blocks = find_structure(model).blocks
    calibration.start(model, blocks, lambda _: contextlib.nullcontext(), [])
    assert calibration.calls and calibration.dtype is torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_block_keeps_a_forward_of_its_own(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = Fourier().eval()
    block: Any = model.blocks[1]
    block.forward = MethodType(lambda self, x: 3 - self.linear(x), block)
    expected = model(VECTORS)
    calibration = Calibration(calibration_batches([VECTORS], model), dtype=dtype)
    blocks = find_structure(model).blocks
    calibration.start(model, blocks, lambda _: contextlib.nullcontext(), [])
    assert calibration.calls
    torch.testing.assert_close(model(VECTORS), expected, atol=0, rtol=0)
    before = model.blocks[0](VECTORS)
    calibration.advance("blocks.0")
    torch.testing.assert_close(calibration.states[0].float(), before, atol=0.05, rtol=0.05)
    calibration.advance("blocks.1")
    torch.testing.assert_close(calibration.states[0].float(), expected, atol=0.1, rtol=0.05)


def test_quantized_with_data_a_block_keeps_a_forward_of_its_own() -> None:
    torch.manual_seed(0)
    model = Fourier().eval()
    block: Any = model.blocks[1]
    block.forward = MethodType(lambda self, x: 3 - 9 * self.linear(x), block)
    packed = tauten.quantize(model, technique=tauten.GPTQ(8, group_size=16), data=[VECTORS])
    with torch.no_grad():
        torch.testing.assert_close(packed(VECTORS), model(VECTORS), atol=0.2, rtol=0.05)
