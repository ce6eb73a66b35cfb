"""No link out of a model's folder is followed, nor is what it leads to copied out."""

import json
import os
import shutil
from pathlib import Path

import pytest
from tiny_models import tiny_bert

import tauten
from tauten.core.errors import InputError
from tauten.distributed.blueprint import blueprint
from tauten.faces import write_report
from tauten.models.companions import copy_companions, inside
from tauten.models.source import open_source

SECRET = '{"secret": 1}'
OUT = "is a link that leads out of the model's folder, to .*cp -rL"


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "secret.json").write_text(SECRET)
    return folder


def replaced(file: Path, outside: Path) -> None:
    """A link in the place of a file, to the same bytes elsewhere: what is refused is the link."""
    away = outside / file.name
    if file.exists():
        shutil.move(file, away)
    else:
        away.write_text(SECRET)
    file.symlink_to(away)


@pytest.mark.parametrize(
    "name",
    [
        *("config.json", "tokenizer.json", "generation_config.json", "chat_template.jinja"),
        *("notes.txt", "LICENSE", "model-00001-of-00003.safetensors"),
        "model.safetensors.index.json",
    ],
)
def test_a_linked_file_is_refused(
    llama_folder: Path, outside: Path, tmp_path: Path, name: str
) -> None:
    assert (llama_folder / "model-00001-of-00003.safetensors").exists()
    replaced(llama_folder / name, outside)
    with pytest.raises(InputError, match=f"{name} {OUT}"):
        tauten.quantize(llama_folder, 8, out=tmp_path / "out")
    assert not (tmp_path / "out").exists() and not (tmp_path / "out.partial").exists()
    with pytest.raises(InputError, match=OUT):
        blueprint(llama_folder, shared_folders=False)


def test_a_linked_whole_file_is_refused(tmp_path: Path, outside: Path) -> None:
    tiny_bert().save_pretrained(tmp_path / "model")
    replaced(tmp_path / "model/model.safetensors", outside)
    with pytest.raises(InputError, match=rf"model\.safetensors {OUT}"):
        open_source(tmp_path / "model")


def test_a_link_to_a_folder_is_refused(llama_folder: Path, outside: Path, tmp_path: Path) -> None:
    (outside / "template.jinja").write_text("secret")
    (llama_folder / "additional_chat_templates").symlink_to(outside)
    with pytest.raises(InputError, match=f"additional_chat_templates {OUT}"):
        open_source(llama_folder)
    (llama_folder / "additional_chat_templates").unlink()
    (llama_folder / "modules.json").write_text(json.dumps([{"path": ""}, {"path": "1_Pooling"}]))
    (llama_folder / "1_Pooling").symlink_to(outside)
    with pytest.raises(InputError, match=f"1_Pooling {OUT}"):
        copy_companions(llama_folder, tmp_path)


@pytest.mark.parametrize("target", ["nowhere", "tokenizer.model", "../outside/nowhere"])
def test_a_link_that_leads_nowhere_is_refused(
    llama_folder: Path, outside: Path, target: str
) -> None:
    (llama_folder / "tokenizer.model").symlink_to(target)
    with pytest.raises(InputError, match=r"tokenizer\.model is a link (to|that leads out)"):
        open_source(llama_folder)


def test_links_that_are_no_part_of_the_model_and_links_within_it_do_not_matter(
    llama_folder: Path, outside: Path, tmp_path: Path
) -> None:
    (llama_folder / "data").symlink_to(outside)
    (llama_folder / "README.md").symlink_to(outside / "secret.json")
    shutil.move(llama_folder / "config.json", llama_folder / "real.json")
    (llama_folder / "config.json").symlink_to("real.json")
    tauten.quantize(llama_folder, 8, out=tmp_path / "out")
    assert not (tmp_path / "out/README.md").exists() and not (tmp_path / "out/data").exists()
    assert not (tmp_path / "out/config.json").is_symlink()


def cached(folder: Path, cache: Path) -> Path:
    """A model's folder as the hub's cache holds it."""
    root = cache / "models--owner--name"
    snapshot = root / "snapshots" / "0123abc"
    (root / "blobs").mkdir(parents=True)
    for number, file in enumerate(sorted(folder.rglob("*"))):
        if file.is_file():
            place = snapshot / file.relative_to(folder)
            place.parent.mkdir(parents=True, exist_ok=True)
            blob = root / "blobs" / f"{number:040x}"
            shutil.copy(file, blob)
            place.symlink_to(os.path.relpath(blob, place.parent))
    return snapshot


def test_the_cache_of_the_hub_is_made_of_links_and_is_read(
    llama_folder: Path, outside: Path, tmp_path: Path
) -> None:
    (llama_folder / "additional_chat_templates").mkdir()
    (llama_folder / "additional_chat_templates/tool_use.jinja").write_text("tool")
    snapshot = cached(llama_folder, tmp_path / "cache")
    for place in (snapshot, tmp_path / "named"):
        if place != snapshot:
            place.symlink_to(snapshot)  # a user's own link to a folder is what he named
        out = tmp_path / f"out-{place.name}"
        tauten.quantize(place, 8, out=out)
        assert (out / "additional_chat_templates/tool_use.jinja").read_text() == "tool"
        assert not any(file.is_symlink() for file in out.rglob("*"))
    packed = cached(out, tmp_path / "packed")
    tauten.load(packed)
    (snapshot / "tokenizer.json").unlink()
    (snapshot / "tokenizer.json").symlink_to("../../blobs/" + "f" * 40)
    with pytest.raises(InputError, match=r"tokenizer\.json is a link to .* get the model anew"):
        open_source(snapshot)


def test_what_only_looks_like_the_cache_of_the_hub(
    llama_folder: Path, outside: Path, tmp_path: Path
) -> None:
    snapshot = cached(llama_folder, tmp_path / "cache")
    blobs = snapshot.parent.parent / "blobs"
    blob = Path(os.path.realpath(snapshot / "tokenizer.json"))
    shutil.move(blob, outside / "blob")
    blob.symlink_to(outside / "blob")  # one link more leads out
    with pytest.raises(InputError, match=OUT):
        open_source(snapshot)
    blob.unlink()
    shutil.move(outside / "blob", blob)
    shutil.move(blobs, outside / "blobs")
    blobs.symlink_to(outside / "blobs")  # so does the folder of contents
    with pytest.raises(InputError, match=OUT):
        open_source(snapshot)


def test_an_artifact_with_links_is_refused(
    llama_folder: Path, outside: Path, tmp_path: Path
) -> None:
    tauten.quantize(llama_folder, 8, out=tmp_path / "out")
    for name in ("tokenizer.json", "model.safetensors", "tauten.json"):
        replaced(tmp_path / "out" / name, outside)
        with pytest.raises(InputError, match=f"{name} {OUT}"):
            tauten.load(tmp_path / "out")
        (tmp_path / "out" / name).unlink()
        shutil.move(outside / name, tmp_path / "out" / name)
    tauten.load(tmp_path / "out")


def test_the_report_is_not_written_through_a_link(llama_folder: Path, tmp_path: Path) -> None:
    tauten.quantize(llama_folder, 8, out=tmp_path / "out")
    for name in ("report.html.tmp", "report.html"):
        (tmp_path / "out" / name).unlink(missing_ok=True)
        (tmp_path / "out" / name).symlink_to(tmp_path / "victim")
        with pytest.raises(InputError, match=f"{name} is a symbolic link"):
            write_report(tmp_path / "out")
    assert not (tmp_path / "victim").exists()


def test_what_is_not_there_is_no_link(tmp_path: Path) -> None:
    assert inside(tmp_path, "absent") == tmp_path / "absent"
    with pytest.raises(InputError, match="leads out"):
        inside(tmp_path, "../absent")
