"""Binary and ternary weights: they win on a layer's outputs, and a second pass lowers the error."""

import io
from pathlib import Path

import pytest
import torch
from rich.console import Console
from tiny_models import MODELS

import tauten
from tauten.core.errors import InputError, NotApplicableError
from tauten.core.inputs import LayerInputs
from tauten.core.recipe import Recipe
from tauten.core.technique import CalibratedTechnique
from tauten.models import artifact
from tauten.models.packing import packed_modules
from tauten.quantization import RTN, Binary, Ternary
from tauten.report.html import render_html
from tauten.report.terminal import print_result
from tauten.solvers.second_order import output_error

KINDS: tuple[type[Binary] | type[Ternary], ...] = (Binary, Ternary)


def layer_inputs(size: int, seed: int, tokens: int = 2000) -> LayerInputs:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(size, size, generator=generator) * torch.logspace(-0.5, 0.5, size)
    inputs = torch.randn(tokens, size, generator=generator) @ mixing
    return LayerInputs(inputs.t() @ inputs / tokens, tokens)


def errors(
    technique: CalibratedTechnique, weight: torch.Tensor, inputs: LayerInputs
) -> list[float]:
    """Of the weight and of the outputs, without and with inputs."""
    found = []
    for seen in (None, inputs):
        change = technique.encode(weight, seen).dequantize() - weight
        found += [float(change.norm()), float(output_error(change, inputs.moment).sum())]
    return found


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_it_beats_the_nearest_on_outputs_and_loses_on_weights(
    kind: type[Binary] | type[Ternary], residual: bool
) -> None:
    weight = torch.randn(24, 96, generator=torch.Generator().manual_seed(0)) * 0.1
    nearest, nearest_out, ours, ours_out = errors(kind(32, residual), weight, layer_inputs(96, 1))
    assert ours_out < 0.7 * nearest_out
    assert ours > nearest


@pytest.mark.parametrize("kind", KINDS)
def test_a_second_pass_lowers_the_error(kind: type[Binary] | type[Ternary]) -> None:
    weight = torch.randn(24, 96, generator=torch.Generator().manual_seed(2))
    inputs = layer_inputs(96, 3)
    one, two = (errors(kind(32, residual), weight, inputs) for residual in (False, True))
    for first, second, most in zip(one, two, (0.8, 0.5) * 2, strict=True):  # norms and squares
        assert second < most * first


def test_more_levels_lose_less_and_no_search_of_spans_is_better() -> None:
    weight = torch.randn(24, 96, generator=torch.Generator().manual_seed(4))
    lost = [
        float((technique.encode(weight).dequantize() - weight).norm())
        for technique in (RTN(1, 32, "none"), Binary(32), Ternary(32), RTN(2, 32, "none"))
    ]
    assert lost[0] >= lost[1] > lost[2] > lost[3]


@pytest.mark.parametrize(
    ("technique", "bits"),
    [
        (Binary(0), 1 + 16 / 320),
        (Binary(64), 1.25),
        (Binary(64, residual=True), 2.5),
        (Ternary(0), 1.6 + 16 / 320),
        (Ternary(64), 1.85),
        (Ternary(64, residual=True), 3.7),
    ],
)
def test_bits_per_weight_are_exact(technique: CalibratedTechnique, bits: float) -> None:
    weight = torch.randn(16, 320, generator=torch.Generator().manual_seed(5))
    assert technique.encode(weight).bits_per_weight == pytest.approx(bits)


@pytest.mark.parametrize("kind", KINDS)
def test_a_convolution_keeps_its_shape(kind: type[Binary] | type[Ternary]) -> None:
    weight = torch.randn(6, 4, 3, 3, generator=torch.Generator().manual_seed(6))
    for residual in (False, True):
        assert kind(0, residual).encode(weight, layer_inputs(36, 7)).shape == (6, 4, 3, 3)


@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_of_zeros_stays_zero(kind: type[Binary] | type[Ternary]) -> None:
    for seen in (None, layer_inputs(40, 8)):
        found = kind(16, residual=True).encode(torch.zeros(5, 40), seen).dequantize()
        assert torch.equal(found, torch.zeros(5, 40))


@pytest.mark.parametrize("kind", KINDS)
def test_inputs_that_say_nothing_are_refused(kind: type[Binary] | type[Ternary]) -> None:
    with pytest.raises(NotApplicableError, match="zero or not finite"):
        kind().encode(torch.randn(4, 8), LayerInputs(torch.zeros(8, 8), 10))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "knobs",
    [{"group_size": -1}, {"group_size": 2.0}, {"residual": 2}, {"damping": 0}, {"activation": "x"}],
)
def test_bad_knobs_are_refused(
    kind: type[Binary] | type[Ternary], knobs: dict[str, object]
) -> None:
    with pytest.raises(InputError, match=f"{kind.name}: {next(iter(knobs))}"):
        kind(**knobs)  # type: ignore[arg-type]


def test_an_artifact_holds_it_and_says_what_it_needs(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    build, example = MODELS["llama"]
    build().save_pretrained(tmp_path / "in")
    data = [{"input_ids": example()}]
    written = tauten.quantize(tmp_path / "in", technique="ternary", data=data, out=tmp_path / "out")
    assert "needs distillation" in caplog.text
    loaded = tauten.load(tmp_path / "out")
    assert all(layer.packed.bits_per_weight < 2.5 for _, layer in packed_modules(loaded))
    with torch.inference_mode():
        assert torch.equal(loaded(example()).logits, written(example()).logits)
    manifest = artifact.read_manifest(tmp_path / "out")
    assert manifest["cautions"] == [f"ternary: {Ternary.caution}"]
    assert "needs distillation" in render_html(manifest, {})
    console = Console(file=io.StringIO(), width=80)
    print_result(manifest, {}, console)
    assert isinstance(console.file, io.StringIO)
    assert "needs distillation" in " ".join(console.file.getvalue().split())


def test_other_techniques_carry_no_caution() -> None:
    assert Recipe.of(RTN(4)).cautions == []
    assert len(Recipe.of(Binary(), Ternary(32), Ternary(64)).cautions) == 2
