"""Workers answer for the teacher: as it would, to what is trained on, and once."""

from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from tiny_models import tiny_llama

import tauten
from tauten.compression.comparison import Comparison
from tauten.compression.imitation import compared_blocks
from tauten.core.recipe import Recipe
from tauten.models.batch import CalibrationBatch
from tauten.models.calibration import fast_dtype
from tauten.models.source import open_source
from tauten.models.targets import Targets
from tauten.search import asking
from tauten.search.trainer import Trainer

IDS = torch.randint(0, 128, (24, 16), generator=torch.Generator().manual_seed(0))
MASK = torch.ones_like(IDS, dtype=torch.bool)
BATCHES = [
    CalibrationBatch((), {"input_ids": IDS[at : at + 4]}, MASK[at : at + 4])
    for at in range(0, 24, 4)
]


def trained(folder: Path, technique: tauten.Distill, workers: int | None) -> torch.nn.Module:
    teacher = tiny_llama(layers=4)
    student = tiny_llama(layers=2)
    Trainer(open_source(teacher), BATCHES, BATCHES, workers).run([technique], student, folder)
    return student


@pytest.mark.parametrize("loss", ["kl", "kl+hidden"])
def test_answers_are_the_teachers_own(loss: str, tmp_path: Path) -> None:
    technique = tauten.Distill(loss, batch_tokens=64, steps=4)
    trained(tmp_path, technique, 2)
    kept = sorted((tmp_path / "1 distill" / "teacher").glob("*.safetensors"))
    assert len(kept) == 4, "what isn't trained on isn't asked"
    teacher, student = tiny_llama(layers=4), tiny_llama(layers=2)
    parts = loss.split("+")
    blocks = [theirs for _, theirs in compared_blocks(student, teacher, parts)]
    for file in kept:
        batch = BATCHES[int(file.stem)]
        found = safetensors.torch.load_file(file)
        wanted = Comparison(tuple(parts), fast_dtype()).answer(teacher, blocks, batch)
        assert found.keys() == wanted.keys()
        for key, tensor in wanted.items():
            torch.testing.assert_close(found[key].float(), tensor.float(), rtol=0.02, atol=0.02)


def test_a_student_learns_as_from_a_teacher_beside_it(tmp_path: Path) -> None:
    technique = tauten.Distill(batch_tokens=64, steps=6, learning_rate=1e-3)
    alone = trained(tmp_path / "alone", technique, None).state_dict()
    together = trained(tmp_path / "together", technique, 2).state_dict()
    start = tiny_llama(layers=2).state_dict()
    for name, tensor in alone.items():
        moved = (tensor - start[name]).norm()
        assert (together[name] - tensor).norm() <= 0.1 * moved


def test_the_teacher_does_not_run_here_and_is_asked_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    technique = tauten.Distill(batch_tokens=64, steps=6)

    def forbidden(*_: Any) -> Any:
        raise AssertionError("the teacher ran in this process")

    with monkeypatch.context() as patch:
        patch.setattr(Comparison, "answer", forbidden)
        trained(tmp_path, technique, 2)
    monkeypatch.setattr(asking, "engine_for", forbidden)
    trained(tmp_path, technique, 2)  # all answers are there


def test_what_has_no_room_is_left_to_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tauten.models.targets.MAX_BYTES", 1)
    assert Targets(tmp_path / "none").put(0, {"": torch.zeros(8)}) is False
    trained(tmp_path, tauten.Distill(batch_tokens=64, steps=2), 2)
    assert not list((tmp_path / "1 distill" / "teacher").glob("*.safetensors"))


def test_time_limits_and_tuning_of_scales_ask_nobody() -> None:
    model = tiny_llama()
    assert tauten.Distill(max_time_s=1.0).questions(model, model, BATCHES) is None
    assert tauten.TuneScales().questions(model, model, BATCHES) is None
    assert tauten.Distill().questions(model, model, iter(BATCHES)) is None


def test_compress_and_recipes_that_cut_first_take_workers(
    tmp_path: Path, llama_folder: Path, texts: list[str]
) -> None:
    healed = tauten.Distill(steps=2, batch_tokens=64)
    recipe = Recipe.of(tauten.PruneDepth(0.5), healed, tauten.GPTQ(4, 32))
    small = tauten.compress(
        str(llama_folder), technique=recipe, data=texts, out=tmp_path / "out", workers=2
    )
    assert small.config.num_hidden_layers == 1
