"""Every byte of an artifact is covered: what was changed, is missing or was added is refused."""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import tauten
from tauten.cli import app
from tauten.core.digests import sealed
from tauten.core.errors import CorruptError
from tauten.core.files import write_json
from tauten.faces import read_recipe
from tauten.models import artifact, covered

X = torch.arange(12).view(1, 12)


@pytest.fixture
def packed(llama_folder: Path, tmp_path: Path) -> Path:
    (llama_folder / "chat_template.jinja").write_text("{{ messages }}")
    (llama_folder / "additional_chat_templates").mkdir()
    (llama_folder / "additional_chat_templates/tool_use.jinja").write_text("tool {{ messages }}")
    (llama_folder / "LICENSE").write_text("free")
    tauten.quantize(llama_folder, 8, out=tmp_path / "packed")
    return tmp_path / "packed"


def names_of(folder: Path) -> set[str]:
    return {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()}


def test_all_files_are_covered_but_the_report(packed: Path) -> None:
    manifest = artifact.read_manifest(packed)
    known = {*manifest["files"], manifest["weights"]["file"], "tauten.json", "timing.json"}
    assert names_of(packed) - known == {"report.html"}
    assert {"recipe.yaml", "LICENSE", "additional_chat_templates/tool_use.jinja"} <= known


def test_a_flipped_bit_in_any_file_is_refused_or_changes_nothing(packed: Path) -> None:
    before, draw = tauten.load(packed)(X).logits, random.Random(0)
    timing = artifact.read_timing(packed)
    for name in sorted(names_of(packed)):
        whole = (packed / name).read_bytes()
        for bit in draw.sample(range(8 * len(whole)), 12) if whole else ():
            flipped = bytearray(whole)
            flipped[bit // 8] ^= 1 << bit % 8
            (packed / name).write_bytes(flipped)
            try:
                made, read = tauten.load(packed), artifact.read_timing(packed)
            except CorruptError as error:
                assert name in str(error) and "\n" not in str(error)
            else:
                assert name in ("report.html", "timing.json"), (name, bit)
                assert torch.equal(made(X).logits, before) and timing.items() <= read.items()
        (packed / name).write_bytes(whole)


def test_a_flipped_bit_anywhere_in_the_manifest(packed: Path) -> None:
    whole, manifest = (packed / "tauten.json").read_bytes(), artifact.read_manifest(packed)
    for bit in random.Random(0).sample(range(8 * len(whole)), 2000):
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        (packed / "tauten.json").write_bytes(flipped)
        try:
            assert artifact.read_manifest(packed) == manifest, bit
        except CorruptError as error:
            assert "tauten.json" in str(error)


@pytest.mark.parametrize(
    "name",
    [
        *("generation_config.json", "chat_template.json", "adapter_config.json", "model.py"),
        *("additional_chat_templates/rag.jinja", "added_tokens.json", "vocab.txt"),
    ],
)
def test_a_file_that_may_change_what_is_computed_is_noticed(packed: Path, name: str) -> None:
    file = packed / name
    file.unlink(missing_ok=True)
    tauten.load(packed) if name != "generation_config.json" else None
    manifest = artifact.read_manifest(packed)
    manifest["files"].pop(name, None)
    covered.accept(packed, manifest)
    tauten.load(packed)
    file.write_text("{}")
    with pytest.raises(CorruptError, match=f"{name} wasn't there when .*: tauten accept"):
        tauten.load(packed)


def test_what_is_beside_the_model_may_come_and_go(packed: Path) -> None:
    for name in ("README.md", "LICENSE.txt", "sample.png", "report.html", ".gitattributes"):
        (packed / name).write_text("x")
    for name in ("timing.json", "LICENSE", "recipe.yaml"):
        (packed / name).unlink()
    tauten.load(packed)
    (packed / "config.json").unlink()
    with pytest.raises(CorruptError, match=r"config\.json is missing: make the folder anew"):
        tauten.load(packed)


def test_a_change_on_purpose_is_accepted_by_a_command(packed: Path) -> None:
    (packed / "chat_template.jinja").write_text("changed {{ messages }}")
    (packed / "additional_chat_templates/tool_use.jinja").unlink()
    with pytest.raises(CorruptError, match=f"accept it: tauten accept {packed}"):
        tauten.load(packed)
    done = CliRunner().invoke(app, ["accept", str(packed)])
    assert done.exit_code == 0, done.output
    said = "accepted: additional_chat_templates/tool_use.jinja\naccepted: chat_template.jinja\n"
    assert done.stdout == said
    tauten.load(packed)
    assert "nothing has changed" in CliRunner().invoke(app, ["accept", str(packed)]).stdout
    (packed / "model.safetensors").write_bytes(b"x" + (packed / "model.safetensors").read_bytes())
    refused = CliRunner().invoke(app, ["accept", str(packed)])
    assert isinstance(refused.exception, CorruptError) or refused.exit_code == 2
    with pytest.raises(CorruptError, match=r"model\.safetensors"):
        tauten.load(packed)


def test_neither_weights_nor_a_missing_configuration_are_accepted(packed: Path) -> None:
    (packed / "config.json").rename(packed.parent / "config.json")
    manifest = artifact.read_manifest(packed)
    with pytest.raises(CorruptError, match=r"config\.json is missing"):
        covered.accept(packed, manifest)
    (packed.parent / "config.json").rename(packed / "config.json")
    with (packed / "model.safetensors").open("ab") as opened:
        opened.write(b"x")
    with pytest.raises(CorruptError, match="weights can't be accepted"):
        covered.accept(packed, manifest)
    assert artifact.read_manifest(packed) == manifest


def test_a_recipe_is_replayed_as_it_was_written(packed: Path, tmp_path: Path) -> None:
    recipe = packed / "recipe.yaml"
    text = recipe.read_text()
    (packed / "config.json").unlink()  # no matter to the recipe
    assert read_recipe(recipe).steps
    recipe.write_text(text + "# mine\n")
    with pytest.raises(CorruptError, match=r"recipe\.yaml changed since it was written"):
        read_recipe(recipe)
    assert read_recipe(shutil.copy(recipe, tmp_path / "recipe.yaml")).steps


def unsealed(folder: Path, change: Callable[[dict[str, object]], object]) -> None:
    file = folder / "tauten.json"
    manifest = json.loads(file.read_text())
    change(manifest)
    file.write_text(json.dumps(manifest))


def test_folders_of_earlier_versions_load_and_can_be_covered(packed: Path) -> None:
    before = tauten.load(packed)(X).logits
    unsealed(packed, lambda manifest: (manifest.pop("files"), manifest.pop("sha256")))
    timing = json.loads((packed / "timing.json").read_text())
    timing.pop("sha256")
    (packed / "timing.json").write_text(json.dumps(timing))
    assert artifact.read_timing(packed) == timing
    assert torch.equal(tauten.load(packed)(X).logits, before)
    CliRunner().invoke(app, ["accept", str(packed)])
    (packed / "generation_config.json").write_text("{}")
    with pytest.raises(CorruptError, match=r"generation_config\.json changed"):
        tauten.load(packed)


def test_a_manifest_that_has_lost_its_digest_is_refused(packed: Path) -> None:
    unsealed(packed, lambda manifest: manifest.pop("sha256"))
    with pytest.raises(CorruptError, match=r"tauten\.json: damaged .*sha256.*make it anew"):
        tauten.load(packed)


def test_layers_to_be_loaded_dense_are_packed_ones(packed: Path) -> None:
    manifest = artifact.read_manifest(packed)
    write_json(packed / "tauten.json", sealed({**manifest, "written_out": ["nowhere"]}))
    with pytest.raises(CorruptError, match="written_out='nowhere' is none of the modules"):
        tauten.load(packed)
