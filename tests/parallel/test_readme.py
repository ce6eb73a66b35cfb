"""The README's examples run as they stand."""

import re
from pathlib import Path

import pytest
import torch
from tiny_models import tiny_mlp
from torch import nn

import tauten


def test_the_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tauten.parallel.profile._REPEAT_S", 1e-9)
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    section = readme.split("## On several cores or GPUs")[1].split("\n## ")[0]
    inference, training = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    model, batch = tiny_mlp(), torch.randn(6, 10)
    names = {"tauten": tauten, "torch": torch, "model": model, "batch": batch}
    names |= {"batches": [batch] * 3, "loader": [(batch, batch)] * 3}
    names["loss_function"] = nn.functional.mse_loss
    exec(inference, names)
    with torch.no_grad():
        assert torch.allclose(names["outputs"], model(batch), atol=1e-6)
    assert (tmp_path / "plan.json").is_file()
    before = nn.functional.mse_loss(model(batch), batch)
    exec(training, names)
    assert nn.functional.mse_loss(model(batch), batch) < before


def test_the_example_over_machines_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    section = readme.split("## On many machines")[1].split("\n## ")[0]
    (example,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    names = {"tauten": tauten, "model": tiny_mlp(), "batches": [torch.randn(3, 10)] * 4}
    exec(example, names)
    with torch.no_grad():
        assert torch.allclose(names["outputs"][3], names["model"](names["batches"][3]), atol=1e-6)
    assert (tmp_path / "outputs" / "journal.jsonl").is_file()
