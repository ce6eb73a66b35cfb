"""An entropy-coded artifact: fewer bytes in the file, and nothing else differs."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_models import MODELS

import tauten
from tauten.core.errors import CorruptError, InputError
from tauten.core.recipe import Recipe
from tauten.core.technique import Technique
from tauten.formats import entropy
from tauten.formats.codebook import CodebookWeight
from tauten.formats.integer import IntegerWeight
from tauten.formats.packed import PackedWeight
from tauten.formats.sparse import SparseWeight
from tauten.formats.ternary import TernaryWeight
from tauten.models.reader import CODED
from tauten.models.source import open_source
from tauten.models.structure import find_structure
from tauten.models.walk import Walk
from tauten.report.html import render_html
from tauten.search.run import run_recipe

TECHNIQUES = [tauten.Int8(), tauten.RTN(5, 32, "integer")]


def write(folder: Path, technique: Technique, out: Path, coded: bool) -> torch.nn.Module:
    return tauten.quantize(folder, technique=technique, out=out, entropy_coding=coded)


def packed_weights() -> list[PackedWeight]:
    codes = torch.randint(0, 8, (12, 36), generator=torch.manual_seed(0)).to(torch.uint8)
    scale, zero = torch.rand(12, 3).half(), torch.arange(36).view(12, 3).to(torch.uint8) % 8
    half = torch.tensor([True, False, False, True]).repeat(12, 9)
    return [
        IntegerWeight.from_codes((12, 36), 3, 12, codes, scale, zero),
        CodebookWeight.from_codes((12, 36), 3, codes, torch.randn(12, 8)),
        SparseWeight.from_codes(half, 3, 12, codes, scale, zero),
        SparseWeight.from_codes(codes > 2, 3, 12, codes, scale, None),
        SparseWeight.from_dense(torch.randn(12, 36).bfloat16(), codes > 2),
        TernaryWeight.from_signs((12, 36), 12, codes.to(torch.int8) % 3 - 1, scale),
    ]


@pytest.mark.parametrize("weight", packed_weights())
def test_layouts_of_all_kinds_of_weights(weight: PackedWeight) -> None:
    layouts = weight.code_layouts()
    held = {name for name, buffer in weight.named_buffers() if buffer.dtype == torch.uint8}
    assert layouts.keys() == held
    for name, buffer in weight.named_buffers():
        if name in layouts or buffer.is_floating_point():
            assert torch.equal(entropy.decode(entropy.encode(buffer, layouts.get(name))), buffer)


@pytest.mark.parametrize("where", ["*", "model.layers.*"])
@pytest.mark.parametrize("technique", TECHNIQUES, ids=lambda technique: technique.name)
def test_coded_model_is_smaller_and_the_same(llama_folder, tmp_path, technique, where) -> None:
    """Packed codes, and the floats of what stays unpacked."""
    written = []
    for coded in (False, True):
        options = {"technique": technique, "where": where, "entropy_coding": coded}
        written.append(tauten.quantize(llama_folder, out=tmp_path / str(coded), **options))
    first, *others = (model.state_dict() for model in (*written, tauten.load(tmp_path / "True")))
    for state in others:
        assert state.keys() == first.keys()
        assert all(torch.equal(state[name], first[name]) for name in state)
    file = tmp_path / "True/model.safetensors"
    assert file.stat().st_size < (tmp_path / "False/model.safetensors").stat().st_size
    plain, manifest = (
        json.loads((tmp_path / name / "tauten.json").read_text()) for name in ("False", "True")
    )
    assert manifest["weights"]["size_bytes"] == file.stat().st_size
    assert manifest["memory_bytes"] == plain["memory_bytes"]
    check_layers(manifest["layers"], {k: t.nbytes for k, t in load_file(file).items()})


def check_layers(layers: list[dict[str, Any]], bytes_of: dict[str, int]) -> None:
    """The manifest's figures of layers are those of the file."""
    assert any(name.endswith(CODED) for name in bytes_of)
    for layer in layers:
        names = (f"{layer['name']}.packed.", f"{layer['name']}.weight")
        size = sum(count for name, count in bytes_of.items() if name.startswith(names))
        if size:  # a tied twin's is stored under the other name
            assert layer["size_bytes"] == size
            bits = 8 * size / torch.Size(layer["shape"]).numel()
            assert layer["bits_per_weight"] == pytest.approx(bits, abs=2e-3)


def test_streamed_a_block_at_a_time(llama_folder: Path, tmp_path: Path) -> None:
    model = write(llama_folder, tauten.Int8(), tmp_path / "out", True)
    source = open_source(tmp_path / "out")
    streamed = source.open(find_structure(source.skeleton()).blocks, stream=True)
    tokens = MODELS["llama"][1]()
    with torch.no_grad():
        assert torch.equal(streamed(tokens).logits, model(tokens).logits)


def test_a_run_that_went_on_ends_with_the_same_bytes(
    llama_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Calibrated, so that the finished blocks are read back too."""

    def quantize(name: str) -> None:
        tokens = [{"input_ids": torch.arange(256)[None, :100]}]
        technique = tauten.GPTQ(8, 32)
        options = {"data": tokens, "out": tmp_path / name, "entropy_coding": True}
        tauten.quantize(llama_folder, technique=technique, **options)

    def stopped(self: Walk, part: str, *rest: object) -> None:
        if part == "model.layers.2":
            raise KeyboardInterrupt
        pack_part(self, part, *rest)

    quantize("whole")
    pack_part = Walk._pack_part
    monkeypatch.setattr(Walk, "_pack_part", stopped)
    with pytest.raises(KeyboardInterrupt):
        quantize("stopped")
    monkeypatch.undo()
    quantize("stopped")
    for file in ("model.safetensors", "tauten.json"):
        assert (tmp_path / "stopped" / file).read_bytes() == (
            tmp_path / "whole" / file
        ).read_bytes()


def test_a_tuned_model_is_coded_as_tuned(llama_folder: Path, tmp_path: Path) -> None:
    states, data = [], [{"input_ids": torch.arange(256)[None, :60]}]
    for coded in (False, True):
        recipe = Recipe.of(tauten.RTN(4, 32), tauten.TuneScales(steps=1), entropy_coding=coded)
        source, out = open_source(llama_folder), tmp_path / str(coded)
        states.append(run_recipe(source, recipe, render_html, out, data=data).model.state_dict())
    assert all(torch.equal(states[1][name], tensor) for name, tensor in states[0].items())
    stored = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("False", "True")]
    assert stored[1] < stored[0]


def test_a_module_that_is_one_layer(tmp_path: Path) -> None:
    layer = torch.nn.Linear(300, 200)
    torch.nn.init.normal_(layer.weight)
    one_scale_a_row = tauten.Int8(group_size=0)
    written = tauten.quantize(
        layer, technique=one_scale_a_row, out=tmp_path / "out", entropy_coding=True
    )
    loaded = tauten.load(tmp_path / "out", model=torch.nn.Linear(300, 200))
    x = torch.randn(2, 300)
    assert torch.equal(loaded(x), written(x))
    assert (tmp_path / "out/model.safetensors").stat().st_size < 0.97 * 200 * 300


def test_a_damaged_block_is_refused(llama_folder: Path, tmp_path: Path) -> None:
    write(llama_folder, tauten.Int8(), tmp_path / "out", True)
    source = open_source(tmp_path / "out")
    file = tmp_path / "out/model.safetensors"
    content = bytearray(file.read_bytes())
    content[-50] ^= 1
    file.write_bytes(content)  # behind the back of the manifest's hash
    with pytest.raises(CorruptError, match=r"can't read tensor .*entropy-coded"):
        source.open()


def test_recipe_carries_it() -> None:
    recipe = Recipe.of(tauten.Int8(), entropy_coding=True)
    assert Recipe.from_yaml(recipe.to_yaml(), {"int8": tauten.Int8}) == recipe
    assert str(recipe) == "int8, entropy-coded"
    with pytest.raises(InputError, match="entropy_coding=1: expected true or false"):
        Recipe.from_yaml("entropy_coding: 1\nsteps: []", {})


def test_without_a_file_there_is_nothing_to_code() -> None:
    with pytest.raises(InputError, match="pass out=FOLDER"):
        tauten.quantize(torch.nn.Linear(4, 4), entropy_coding=True)
