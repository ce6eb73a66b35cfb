"""A distilled student is nearer to its teacher, on data it wasn't trained on."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import tiny_bert, tiny_cnn, tiny_llama
from torch import nn

import tauten
from tauten.compression.distill import Pieces
from tauten.core.errors import CorruptError, InputError, NotApplicableError
from tauten.core.recipe import Recipe
from tauten.data.calibration import Passes, calibration_batches
from tauten.data.tensors import main_output
from tauten.models import training
from tauten.models.calibration import CalibrationBatch
from tauten.models.packing import packed_modules
from tauten.models.source import fingerprint_tensors
from tauten.search.techniques import TECHNIQUES
from tauten.solvers.distillation import divergence, relative_error


def strong(model: nn.Module) -> Any:
    """The model with predictions that are far from uniform."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4 if parameter.dim() > 1 else 1)
    return model


def without_block(model: Any, gone: int) -> Any:
    student = copy.deepcopy(model)
    blocks = [b for i, b in enumerate(student.model.layers) if i != gone]
    student.model.layers = nn.ModuleList(blocks)
    student.config.num_hidden_layers = len(blocks)
    for place, block in enumerate(blocks):
        block.self_attn.layer_idx = place
    return student


def batches(seed: int, count: int = 6, rows: int = 4) -> list[CalibrationBatch]:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, 256, (count, rows, 24), generator=generator)
    return [CalibrationBatch((), {"input_ids": x, "use_cache": False}) for x in ids]


def images(seed: int, count: int = 6) -> list[CalibrationBatch]:
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(count, 16, 1, 12, 12, generator=generator)
    return [CalibrationBatch((x,), {}) for x in drawn]


def gap(student: nn.Module, teacher: nn.Module, data: list[CalibrationBatch]) -> float:
    """KL divergence from the teacher; relative squared error of outputs without logits."""
    losses = []
    for batch in data:
        with torch.no_grad():
            ours, theirs = (m(*batch.args, **batch.kwargs) for m in (student, teacher))
        compare = relative_error if hasattr(ours, "last_hidden_state") else divergence
        pair = (main_output(x).flatten(0, -2) for x in (ours, theirs))
        losses.append(float(compare(*pair)))
    return sum(losses) / len(losses)


@pytest.fixture(scope="module")
def teacher() -> Any:
    return strong(tiny_llama(tied=False))


@pytest.fixture
def student(teacher: Any) -> Any:
    return without_block(teacher, 1)


@pytest.mark.parametrize(
    ("knobs", "share"),
    [
        ({"learning_rate": 1e-3}, 0.9),
        ({"loss": "skew", "learning_rate": 1e-3}, 0.9),
        ({"loss": "hidden", "learning_rate": 1e-3}, 0.9),
        ({"loss": "kl+hidden", "learning_rate": 1e-3}, 0.9),
        ({"train": "lora", "rank": 4, "learning_rate": 1e-2}, 0.96),
        ({"train": "scales_and_norms", "learning_rate": 1e-2}, 0.97),
    ],
)
def test_a_student_without_a_block_heals(
    teacher: Any, student: Any, knobs: dict[str, Any], share: float
) -> None:
    before = fingerprint_tensors(teacher.state_dict())
    names, dtypes = zip(*((n, t.dtype) for n, t in student.state_dict().items()), strict=True)
    unhealed = gap(student, teacher, batches(1))
    tauten.Distill(steps=16, batch_tokens=96, **knobs).tune(student, teacher, batches(0, 16))
    assert gap(student, teacher, batches(1)) < share * unhealed
    assert fingerprint_tensors(teacher.state_dict()) == before
    after = student.state_dict()
    assert sorted(after) == sorted(names) and {t.dtype for t in after.values()} == set(dtypes)
    assert not any(p.requires_grad for p in student.parameters())


def test_a_user_s_own_narrower_module_learns_from_scratch(teacher: Any) -> None:
    narrow = nn.Sequential(nn.Embedding(256, 32), nn.Linear(32, 256))
    before = gap_of_ids(narrow, teacher, 1)
    data = [CalibrationBatch((b.kwargs["input_ids"],), {}) for b in batches(0)]
    distill = tauten.Distill(steps=48, learning_rate=5e-3, batch_tokens=96)
    distill.tune(narrow, Logits(teacher), data)
    assert gap_of_ids(narrow, teacher, 1) < 0.9 * before


class Logits(nn.Module):
    """Called with token ids, gives logits."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return main_output(self.model(ids))


def gap_of_ids(student: nn.Module, teacher: nn.Module, seed: int) -> float:
    data = [CalibrationBatch((b.kwargs["input_ids"],), {}) for b in batches(seed)]
    return gap(student, Logits(teacher), data)


def test_an_encoder_without_logits_learns_its_hidden_states() -> None:
    teacher = strong(tiny_bert())
    student = copy.deepcopy(teacher)
    student.encoder.layer = nn.ModuleList([student.encoder.layer[i] for i in (0, 2)])
    data, unseen = batches(0), batches(1)
    for batch in (*data, *unseen):
        del batch.kwargs["use_cache"]
    unhealed = gap(student, teacher, unseen)
    distill = tauten.Distill("hidden", steps=24, learning_rate=1e-3, batch_tokens=96)
    distill.tune(student, teacher, data)
    assert gap(student, teacher, unseen) < 0.8 * unhealed
    with pytest.raises(InputError, match="BertModel returns no logits; pass loss='hidden'"):
        tauten.Distill(steps=1).tune(student, teacher, data)


def test_an_encoder_learns_its_mean_over_tokens_and_no_padding() -> None:
    teacher = strong(tiny_bert())
    student = copy.deepcopy(teacher)
    student.encoder.layer = nn.ModuleList([student.encoder.layer[i] for i in (0, 2)])
    data, unseen = padded(0, 12), padded(1, 6)
    before = embedding_gap(student, teacher, unseen)
    by_state = copy.deepcopy(student)
    for loss, model in (("embedding", student), ("hidden", by_state)):
        distill = tauten.Distill(loss, steps=36, learning_rate=1e-3, batch_tokens=480)
        distill.tune(model, teacher, data)
    after = embedding_gap(student, teacher, unseen)
    assert after < 0.2 * before
    assert after < embedding_gap(by_state, teacher, unseen)


def padded(seed: int, count: int) -> list[CalibrationBatch]:
    """Rows of which each has less tokens than the one before."""
    found = []
    for batch in batches(seed, count, rows=20):
        mask = torch.arange(24) < torch.arange(24, 4, -1)[:, None]
        ids = batch.kwargs["input_ids"].where(mask, 0)
        found.append(CalibrationBatch((), {"input_ids": ids, "attention_mask": mask.long()}, mask))
    return found


@torch.no_grad()
def embedding_gap(student: nn.Module, teacher: nn.Module, data: list[CalibrationBatch]) -> float:
    def means(model: nn.Module, batch: CalibrationBatch) -> torch.Tensor:
        states = model(**batch.kwargs).last_hidden_state
        return torch.stack([s[m].mean(0) for s, m in zip(states, batch.mask, strict=True)])

    errors = [relative_error(means(student, b), means(teacher, b)) for b in data]
    return float(torch.stack(errors).mean())


def test_embeddings_are_of_hidden_states_and_of_one_size(teacher: Any, student: Any) -> None:
    with pytest.raises(InputError, match="LlamaForCausalLM returns no hidden states to average"):
        tauten.Distill("embedding", steps=1).tune(student, teacher, batches(0))
    one, other = nn.Embedding(256, 8), nn.Embedding(256, 6)
    data = [CalibrationBatch((b.kwargs["input_ids"],), {}) for b in batches(0)]
    with pytest.raises(InputError, match=r"embeddings .* \(8,\), its teacher's of \(6,\)"):
        tauten.Distill("embedding", steps=1).tune(one, other, data)


def test_a_classifier_of_images_learns_with_its_batch_norms() -> None:
    teacher = strong(tiny_cnn())
    student = copy.deepcopy(teacher)
    student[1] = nn.Sequential(student[1][0], student[1][2])
    mean = student[1][0].norm.running_mean.clone()
    unhealed = gap(student, teacher, images(1))
    distill = tauten.Distill(steps=60, learning_rate=3e-3)
    distill.tune(student, teacher, images(0))
    assert gap(student, teacher, images(1)) < 0.5 * unhealed
    assert not torch.equal(student[1][0].norm.running_mean, mean)
    assert torch.equal(teacher[1][0].norm.running_mean, mean)
    assert not any(module.training for module in student.modules())


@pytest.mark.parametrize("train", ["all", "lora"])
def test_zeros_stay_zero_if_asked(teacher: Any, train: str) -> None:
    student = copy.deepcopy(teacher)
    zeros = {}
    with torch.no_grad():
        for name, parameter in student.named_parameters():
            if parameter.dim() > 1 and "proj" in name:
                zeros[name] = torch.rand(parameter.shape) < 0.5
                parameter[zeros[name]] = 0.0
    unhealed = gap(student, teacher, batches(1))
    distill = tauten.Distill(
        train=train, steps=12, learning_rate=1e-3, batch_tokens=96, keep_zeros=True
    )
    distill.tune(student, teacher, batches(0))
    assert gap(student, teacher, batches(1)) < unhealed
    for name, zero in zeros.items():
        weight = student.get_parameter(name)
        assert not weight[zero].any() and weight[~zero].all(), name


def test_low_rank_changes_are_merged(teacher: Any, student: Any) -> None:
    before = copy.deepcopy(student)
    tauten.Distill(train="lora", rank=2, steps=3, batch_tokens=96).tune(
        student, teacher, batches(0)
    )
    assert [type(m) for m in student.modules()] == [type(m) for m in before.modules()]
    for name, old in before.named_parameters():
        change = student.get_parameter(name) - old
        if "proj" in name:
            spectrum = torch.linalg.svdvals(change)
            assert spectrum[1] > 0 and spectrum[2] < 1e-5 * spectrum[0], name
        elif "norm" in name or "embed" in name:
            assert not change.any(), name


def test_a_packed_student_keeps_its_codes(teacher: Any) -> None:
    packed = tauten.quantize(teacher, technique=tauten.RTN(2, 32), where="model.layers.*")
    before = copy.deepcopy(packed)
    distill = tauten.Distill(steps=16, batch_tokens=96)
    distill.tune(packed, teacher, batches(0, 16))
    assert gap(packed, teacher, batches(1)) < 0.97 * gap(before, teacher, batches(1))
    pairs = list(zip(packed_modules(before), packed_modules(packed), strict=True))
    assert pairs
    for (_, old), (name, new) in pairs:
        assert torch.equal(old.packed.integer_codes(), new.packed.integer_codes()), name
        assert not torch.equal(old.packed.scale, new.packed.scale), name
    with pytest.raises(InputError, match="is packed, and its codes can't be trained"):
        tauten.Distill(train="all").tune(packed, teacher, batches(0))


class Killed(Exception):
    """Stands for a kill."""


def killed_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Make the next training die when it has computed the gradients of a step."""
    slopes, seen = training.Training._slopes, []

    def dying(self: training.Training, loss: torch.Tensor) -> float:
        seen.append(loss)
        if len(seen) == step:
            raise Killed
        return slopes(self, loss)

    monkeypatch.setattr(training.Training, "_slopes", dying)


@pytest.mark.parametrize("train", ["all", "lora", "scales_and_norms"])
def test_a_killed_training_ends_with_the_same_bits(
    teacher: Any, tmp_path: Path, train: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    distill = tauten.Distill("kl+hidden", train, steps=9, batch_tokens=96)
    whole, half, resumed = (without_block(teacher, 1) for _ in range(3))
    distill.tune(whole, teacher, batches(0))
    monkeypatch.setattr(training, "CHECKPOINT_S", 0.0)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        killed_at(patch, 8)
        distill.tune(half, teacher, batches(0), tmp_path)
    distill.tune(resumed, teacher, batches(0), tmp_path)
    for name, tensor in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], tensor), name
    (tmp_path / training.CHECKPOINT).write_bytes(b"damaged")
    with pytest.raises(CorruptError, match="delete it to start anew"):
        distill.tune(without_block(teacher, 1), teacher, batches(0), tmp_path)


def test_batch_norms_resume_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher, distill = strong(tiny_cnn()), tauten.Distill(steps=8)
    whole, half, resumed = (strong(tiny_cnn()) for _ in range(3))
    distill.tune(whole, teacher, images(0))
    monkeypatch.setattr(training, "CHECKPOINT_S", 0.0)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        killed_at(patch, 6)
        distill.tune(half, teacher, images(0), tmp_path)
    distill.tune(resumed, teacher, images(0), tmp_path)
    for name, tensor in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], tensor), name


def test_the_teacher_runs_once_a_batch(teacher: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    forward = type(teacher).forward

    def counted(self: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(len(self.model.layers))
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(type(teacher), "forward", counted)
    distill = tauten.Distill(steps=12, batch_tokens=96)
    distill.tune(without_block(teacher, 1), teacher, batches(0, 4))
    assert calls.count(3) == 4 and calls.count(2) == 12


def test_a_loss_that_is_not_finite_stops_with_the_last_good_weights(
    teacher: Any, student: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(training, "CHECKPOINT_S", 0.0)
    tauten.Distill(steps=60, learning_rate=1e30, batch_tokens=96).tune(student, teacher, batches(0))
    assert "the loss became nan" in caplog.text and "are kept" in caplog.text
    assert all(p.isfinite().all() for p in student.parameters())
    with torch.no_grad():
        student.lm_head.weight.fill_(torch.nan)
    with pytest.raises(InputError, match="the loss is nan at the first step"):
        tauten.Distill(steps=3).tune(student, teacher, batches(0))


def test_time_ends_a_training_as_steps_do(teacher: Any, student: Any) -> None:
    schedule = training.Schedule(1.0, steps=0, max_time_s=10.0, seed=0)
    rates = [schedule.learning_rate(schedule.progress(7, t)) for t in (0.0, 1.0, 5.0, 9.9)]
    assert rates[0] < rates[1] > rates[2] > rates[3] and rates[3] < 0.01
    both = training.Schedule(1.0, steps=10, max_time_s=10.0, seed=0)
    assert both.progress(10, 1.0) == both.progress(1, 10.0) == 1.0
    before = copy.deepcopy(student.state_dict())
    tauten.Distill(max_time_s=0.3, batch_tokens=96).tune(student, teacher, batches(0))
    assert any(not torch.equal(before[n], t) for n, t in student.state_dict().items())


def test_data_that_is_read_anew_in_each_pass(teacher: Any, student: Any) -> None:
    class Loader:
        passes = 0

        def __iter__(self) -> Any:
            self.passes += 1
            return iter([{"input_ids": b.kwargs["input_ids"]} for b in batches(self.passes, 2)])

    loader = Loader()
    data = Passes(loader, teacher)
    tauten.Distill(steps=5, batch_tokens=96).tune(student, teacher, data)
    assert loader.passes == 3
    with pytest.raises(InputError, match="pass steps or max_time_s"):
        tauten.Distill().tune(student, teacher, data)
    once = calibration_batches([{"input_ids": batches(0)[0].kwargs["input_ids"]}], teacher)
    with pytest.raises(InputError, match="can be read anew"):
        tauten.Distill(steps=5).tune(student, teacher, iter(once))


def test_batches_of_tokens_are_cut_and_others_are_not() -> None:
    rows = [piece.rows for piece in Pieces(batches(0, 2), 48)]
    assert rows == [2] * 4
    assert [piece.rows for piece in Pieces(batches(0, 1), 1)] == [1] * 4
    assert [piece.rows for piece in Pieces(images(0, 2), 1)] == [16, 16]


def test_padding_does_not_count(teacher: Any) -> None:
    found = []
    for filler in (7, 9):
        ids = batches(0, 1)[0].kwargs["input_ids"].clone()
        mask = torch.ones_like(ids, dtype=torch.bool)
        ids[1:, 12:], mask[1:, 12:] = filler, False
        student = without_block(teacher, 1)
        batch = CalibrationBatch((), {"input_ids": ids, "use_cache": False}, mask)
        tauten.Distill("kl+hidden", steps=2).tune(student, teacher, [batch])
        found.append(student.state_dict())
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_what_does_not_fit_is_refused(teacher: Any, student: Any) -> None:
    other = tiny_llama(tied=False)
    other.lm_head = nn.Linear(64, 100, bias=False)
    with pytest.raises(InputError, match=r"100 classes .* 256 .* same vocabulary"):
        tauten.Distill().tune(other, teacher, batches(0))
    narrow = nn.Sequential(nn.Embedding(256, 32), nn.Linear(32, 256))
    data = [CalibrationBatch((b.kwargs["input_ids"],), {}) for b in batches(0)]
    with pytest.raises(InputError, match=r"hidden states .* \(256,\), its teacher's of \(100,\)"):
        tauten.Distill("hidden").tune(narrow, Logits(other), data)
    with pytest.raises(NotApplicableError, match="no norm, no bias"):
        tauten.Distill(train="scales_and_norms").tune(
            nn.Sequential(nn.Embedding(4, 4)), narrow, data
        )


def test_recipes_keep_its_knobs() -> None:
    recipe = Recipe.of(tauten.Distill("skew+hidden", "lora", 4, max_time_s=60, keep_zeros=True))
    assert Recipe.from_yaml(recipe.to_yaml(), TECHNIQUES) == recipe


@pytest.mark.parametrize(
    "knobs",
    [
        {"loss": "mse"},
        {"train": "some"},
        {"rank": 0},
        {"steps": -1},
        {"steps": 1.5},
        {"max_time_s": -1.0},
        {"learning_rate": float("nan")},
        {"batch_tokens": 0},
    ],
)
def test_bad_knobs_are_refused(knobs: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="distill: " + next(iter(knobs))):
        tauten.Distill(**knobs)
