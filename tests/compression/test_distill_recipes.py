"""Distillation as a step of recipes, through the calls that users make."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tiny_models import byte_tokenizer, tiny_cnn, tiny_llama
from torch import nn
from torch.utils.data import DataLoader

import tauten
from tauten.core.errors import InputError
from tauten.core.recipe import Recipe
from tauten.data.tensors import main_output
from tauten.models import training
from tauten.models.packing import packed_modules
from tauten.models.source import fingerprint_tensors
from tauten.solvers.distillation import divergence


def strong(model: nn.Module) -> Any:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4 if parameter.dim() > 1 else 1)
    return model


def gap(student: nn.Module, teacher: nn.Module, inputs: torch.Tensor) -> float:
    with torch.no_grad():
        ours, theirs = (main_output(m(inputs)).flatten(0, -2) for m in (student, teacher))
    return float(divergence(ours, theirs))


def images(seed: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return list(torch.randn(4, 32, 1, 12, 12, generator=generator))


def small_cnn(teacher: Any) -> Any:
    student = copy.deepcopy(teacher)
    student[1] = nn.Sequential(student[1][0], student[1][2])
    return student


def test_a_smaller_module_imitates_a_larger_one() -> None:
    teacher = strong(tiny_cnn())
    student = small_cnn(teacher)
    before = [fingerprint_tensors(m.state_dict()) for m in (student, teacher)]
    options = {"technique": "distill", "steps": 40, "learning_rate": 3e-3}
    healed = tauten.compress(student, teacher=teacher, data=images(0), **options)
    unseen = images(1)[0]
    assert gap(healed, teacher, unseen) < 0.6 * gap(student, teacher, unseen)
    assert [fingerprint_tensors(m.state_dict()) for m in (student, teacher)] == before


def test_a_loader_of_random_crops_is_read_anew() -> None:
    teacher = strong(tiny_cnn())
    seen = []

    class Crops(torch.utils.data.Dataset[torch.Tensor]):
        def __len__(self) -> int:
            return 8

        def __getitem__(self, index: int) -> torch.Tensor:
            seen.append(index)
            return torch.randn(1, 12, 12)

    loader = DataLoader(Crops(), batch_size=4)
    distill = tauten.Distill(steps=5)
    tauten.compress(small_cnn(teacher), technique=distill, teacher=teacher, data=loader)
    assert len(seen) > 3 * 8


def test_heal_then_quantize_then_tune() -> None:
    teacher = strong(tiny_cnn())
    student = small_cnn(teacher)
    heal = tauten.Distill(steps=20, learning_rate=3e-3)
    tune = tauten.Distill(train="scales_and_norms", steps=4)
    recipe = Recipe.of(heal, tauten.RTN(4, 16), tune)
    small = tauten.compress(student, technique=recipe, teacher=teacher, data=images(0))
    assert list(packed_modules(small))
    plain = tauten.compress(student, technique=tauten.RTN(4, 16))
    unseen = images(1)[0]
    assert gap(small, teacher, unseen) < 0.8 * gap(plain, teacher, unseen)


def saved_llamas(folder: Path, texts: list[str]) -> list[str]:
    """Folders of a student and its teacher, and a file of texts."""
    teacher = strong(tiny_llama(tied=False))
    student = copy.deepcopy(teacher)
    del student.model.layers[1]
    student.model.layers[1].self_attn.layer_idx = 1
    student.config.num_hidden_layers = 2
    for name, model in (("student", student), ("teacher", teacher)):
        model.save_pretrained(folder / name)
        byte_tokenizer().save_pretrained(folder / name)
    data = folder / "texts.jsonl"
    data.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return [str(folder / "student"), str(folder / "teacher"), str(data)]


def test_a_run_cut_short_ends_with_the_same_bytes(
    tmp_path: Path, texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    student, teacher, data = saved_llamas(tmp_path, texts)
    monkeypatch.setattr(training, "CHECKPOINT_S", 0.0)

    def run(out: str) -> bytes:
        distill = tauten.Distill(steps=8, learning_rate=1e-3, batch_tokens=128)
        options = {"teacher": teacher, "data": data, "out": tmp_path / out}
        tauten.compress(student, technique=distill, **options)
        return (tmp_path / out / "model.safetensors").read_bytes()

    whole, step, seen = run("whole"), training.Training._step, []

    def dying(self: training.Training, rate: float) -> None:
        seen.append(rate)
        if len(seen) == 6:
            raise KeyboardInterrupt
        step(self, rate)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(training.Training, "_step", dying)
        run("resumed")
    assert list(tmp_path.glob("resumed.partial/**/checkpoint.safetensors"))
    monkeypatch.setattr(training.Training, "_step", lambda *x: (seen.append(x[1]), step(*x))[1])
    assert run("resumed") == whole
    assert len(seen) == 6 + 3, "it went on from the sixth of eight steps"
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "resumed")
    ids = torch.arange(24)[None]
    assert torch.equal(loaded(ids).logits, tauten.load(tmp_path / "resumed")(ids).logits)


def test_a_teacher_with_other_tokens_is_refused(tmp_path: Path, texts: list[str]) -> None:
    student, teacher, data = saved_llamas(tmp_path, texts)
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["square"])
    tokenizer.save_pretrained(teacher)
    with pytest.raises(InputError, match="reads text into other tokens"):
        tauten.compress(student, technique="distill", teacher=teacher, data=data)


def test_bad_calls_are_refused() -> None:
    teacher = strong(tiny_cnn())
    with pytest.raises(InputError, match="distill needs data"):
        tauten.compress(teacher, technique="distill")
    with pytest.raises(InputError, match="imitates no model"):
        tauten.compress(teacher, teacher=teacher)
