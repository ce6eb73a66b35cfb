"""README's examples run as they stand, one after the other."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import byte_tokenizer, tiny_llama, tiny_mlp
from torch import nn

import tauten

README = "\n" + (Path(__file__).parents[1] / "README.md").read_text()


def example(title: str, number: int = 0) -> str:
    """A block of Python under a heading; the first stands before all headings."""
    section = README.split(f"\n{title}\n", 1)[1].split("\n## ")[0]
    found: list[str] = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    return found[number]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that examples run in, with the files that they name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tauten.parallel.profile._REPEAT_S", 1e-9)
    return tmp_path


def test_no_example_is_left_out() -> None:
    assert len(re.findall("```python", README)) == 6


def test_the_four_lines(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    exec(example("# Tauten"), {})
    lines = re.findall(r"(\w+): off by (\S+)", capsys.readouterr().out)
    assert [name for name, _ in lines][2:] == ["ParallelModule", "DistributedModule"]
    assert len(lines) == 4 and all(float(off) < 0.05 for _, off in lines)


def test_models_of_text(folder: Path, texts: list[str]) -> None:
    for name in ("model", "student"):
        tiny_llama(layers=4).save_pretrained(folder / "path" / "to" / name)
        byte_tokenizer().save_pretrained(folder / "path" / "to" / name)
    (folder / "my_texts").mkdir()
    for number, text in enumerate(texts):
        (folder / "my_texts" / f"{number}.txt").write_text(text)
    names: dict[str, Any] = {}
    exec(example("## In Python"), names)
    assert names["result"].model is not None and hasattr(names["small"], "generate")


def test_a_metric_of_ones_own(folder: Path) -> None:
    classifier, images = tiny_mlp(), torch.randn(80, 10)
    loader = [(batch, classifier(batch).argmax(1)) for batch in images.split(8)]
    exec(example("## In Python", 1), {"tauten": tauten, "classifier": classifier, "loader": loader})


def test_several_cores(folder: Path) -> None:
    title = "## On several cores or GPUs"
    model, batch = tiny_mlp(), torch.randn(6, 10)
    names = {"tauten": tauten, "torch": torch, "model": model, "batch": batch}
    names |= {"batches": [batch] * 3, "loader": [(batch, batch)] * 3}
    names["loss_function"] = nn.functional.mse_loss
    exec(example(title), names)
    with torch.no_grad():
        assert torch.allclose(names["outputs"], model(batch), atol=1e-6)
    assert (folder / "plan.json").is_file()
    before = nn.functional.mse_loss(model(batch), batch)
    exec(example(title, 1), names)
    assert nn.functional.mse_loss(model(batch), batch) < before


def test_many_machines(folder: Path) -> None:
    names = {"tauten": tauten, "model": tiny_mlp(), "batches": [torch.randn(3, 10)] * 4}
    exec(example("## On many machines"), names)
    with torch.no_grad():
        assert torch.allclose(names["outputs"][3], names["model"](names["batches"][3]), atol=1e-6)
    assert (folder / "outputs" / "journal.jsonl").is_file()
