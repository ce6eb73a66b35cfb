"""The loop from end to end on tiny models."""

import json
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_models import tiny_cnn, tiny_mlp
from torch import nn

import tauten
from tauten.core.errors import BusyError, GoalError, InputError, TautenError
from tauten.core.measurement import Quality, Trial
from tauten.data.texts import read_texts
from tauten.evaluation.metrics import Perplexity
from tauten.evaluation.task import make_task
from tauten.models.packing import packed_modules, write_out
from tauten.models.source import open_source
from tauten.report.html import render_html
from tauten.search.candidate import Candidate
from tauten.search.evaluator import Evaluator
from tauten.search.run import run_recipe
from tauten.search.techniques import TECHNIQUES

QUICK = {"max_tokens": 1500}


def test_met_goal_is_certified_and_true(strict_run, sensitive_folder, texts) -> None:
    result, out = strict_run
    assert result.certified and "of the" in result.reason
    sizes = [t.measurement.size_bytes for t in result.trials]
    drops = [t.measurement.quality.drop for t in result.trials]
    chosen = next(t for t in result.trials if t.recipe == result.recipe)
    within = [s for s, d in zip(sizes, drops, strict=True) if d.high <= 0.001]
    assert chosen.measurement.size_bytes == min(within)
    assert max(d.value for d in drops) > 0.001, "no recipe hurts"
    assert chosen.measurement.size_bytes == (out / "model.safetensors").stat().st_size

    source = open_source(sensitive_folder)
    task = make_task(source, source.skeleton(), texts, None, 0, 1500)
    # The search computes with dense weights; the certificate is of the model as it is served.
    metric, loaded, dense = Perplexity(), tauten.load(out), tauten.load(out)
    write_out(dense, dict(packed_modules(dense)))
    development = ("development", dense, chosen.measurement.quality, 1e-6)
    for split, model, claimed, off in (development, ("test", loaded, result.test, 0.0)):
        batches = getattr(task.splits, split)
        scores = metric.scores(model, batches)
        assert metric.value(scores) == pytest.approx(claimed.value, rel=off, abs=0)
        original = metric.scores(source.open(), batches)
        assert metric.value(original) == claimed.original
        found = metric.drop(original, scores, claimed.drop.confidence)
        assert found.value == pytest.approx(claimed.drop.value, rel=0, abs=off)
        assert found.high == pytest.approx(claimed.drop.high, rel=0, abs=10 * off)
    with torch.inference_mode():
        prompt = torch.tensor([[5, 6, 7]])
        assert loaded.generate(prompt, max_new_tokens=4, do_sample=False).shape == (1, 7)


@pytest.fixture
def no_footprint(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spare the two processes that measure resident memory."""
    monkeypatch.setattr("tauten.search.publish.resident_bytes", lambda model: 1)


def test_artifact_describes_itself(strict_run) -> None:
    out = strict_run.out
    manifest = json.loads((out / "tauten.json").read_text())
    layers = {layer["name"]: layer for layer in manifest["layers"]}
    tensors = load_file(out / "model.safetensors")
    for name in manifest["modules"]:
        held = sum(t.nbytes for key, t in tensors.items() if key.startswith(f"{name}.packed."))
        assert held == layers[name]["size_bytes"], name
    assert layers["lm_head"]["size_bytes"] == 0 and "tied" in layers["lm_head"]["reason"]
    assert all(layer["reason"] for layer in layers.values())
    for file in ("config.json", "tokenizer.json", "recipe.yaml", "report.html", "timing.json"):
        assert (out / file).is_file(), file
    assert not out.with_name("out.partial").exists()


def test_recipe_replays_to_the_same_bytes(sensitive_folder, tmp_path: Path) -> None:
    out = tmp_path / "out"
    tauten.quantize(sensitive_folder, 5, group_size=32, out=out)
    replayed = tmp_path / "replayed"
    recipe = tauten.Recipe.from_yaml((out / "recipe.yaml").read_text(), TECHNIQUES)
    run_recipe(open_source(sensitive_folder), recipe, render_html, replayed, load=False)
    replay = (replayed / "model.safetensors").read_bytes()
    assert replay == (out / "model.safetensors").read_bytes()


def test_impossible_goal_gives_the_nearest_miss(sensitive_folder, texts) -> None:
    goal = tauten.Goal(max_drop=0.0001, max_size_bytes=10_000)
    result = tauten.optimize(sensitive_folder, texts, goal, **QUICK)
    assert not result.certified and "nearest miss" in result.reason
    assert isinstance(result.model, nn.Module)

    def figures(trials: list[Trial]) -> set[tuple[int, float]]:
        done = (t.measurement for t in trials if t.measurement is not None)
        return {(m.size_bytes, m.quality.drop.value) for m in done}

    tried = figures(result.trials)
    beaten = {p for p in tried for q in tried - {p} if q[0] <= p[0] and q[1] <= p[1]}
    assert len(tried) > 1 and figures(result.frontier()) == tried - beaten


@pytest.mark.usefixtures("no_footprint")
def test_streamed_run_equals_resident_run(sensitive_folder, texts, tmp_path, monkeypatch) -> None:
    goal = tauten.Goal(max_drop=None, max_size_bytes=60_000)  # within a drop, mixes are tuned
    tauten.optimize(sensitive_folder, texts, goal, out=tmp_path / "resident", **QUICK)
    monkeypatch.setattr("tauten.search.forecast.available_memory_bytes", lambda: 0)
    tauten.optimize(sensitive_folder, texts, goal, out=tmp_path / "streamed", **QUICK)
    for file in ("model.safetensors", "tauten.json"):
        resident, streamed = (tmp_path / d / file for d in ("resident", "streamed"))
        assert resident.read_bytes() == streamed.read_bytes(), file


def test_goal_that_cannot_fit_is_refused_before_work(sensitive_folder, texts, tmp_path) -> None:
    goal = tauten.Goal(max_memory_bytes=10_000_000)
    with pytest.raises(GoalError, match="needs about"):
        tauten.optimize(sensitive_folder, texts, goal, out=tmp_path / "out", **QUICK)
    assert not (tmp_path / "out.partial").exists()


def test_other_users_of_the_output_are_not_disturbed(sensitive_folder, texts, tmp_path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("keep")
    with pytest.raises(BusyError, match="exists"):
        tauten.optimize(sensitive_folder, texts, out=out, **QUICK)
    assert [f.name for f in out.iterdir()] == ["mine.txt"]


def labelled_images(count: int = 200) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Images whose class is the quadrant with the bright spot."""
    generator = torch.manual_seed(3)
    labels = torch.randint(0, 4, (count,), generator=generator)
    images = 0.3 * torch.randn(count, 1, 12, 12, generator=generator)
    for image, label in zip(images, labels, strict=True):
        row, column = divmod(int(label), 2)
        image[0, row * 6 : row * 6 + 6, column * 6 : column * 6 + 6] += 1
    return [(images[i : i + 50], labels[i : i + 50]) for i in range(0, count, 50)]


@pytest.fixture(scope="module")
def classifier() -> nn.Module:
    """A network that has learned what `labelled_images` show."""
    data, model = labelled_images(), tiny_cnn().train()
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(25):
        for images, labels in data:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images), labels).backward()
            optimizer.step()
    return model.eval()


def test_classifier_by_accuracy(classifier: nn.Module) -> None:
    data = labelled_images()
    result = tauten.optimize(classifier, data, tauten.Goal(max_drop=0.2))
    assert result.test.metric == "accuracy" and result.test.original > 0.8
    assert result.certified
    with torch.no_grad():
        assert result.model(data[0][0]).shape == (50, 4)


def test_compression_alone_also_tries_pruning_and_narrower_networks(
    classifier: nn.Module, caplog: pytest.LogCaptureFixture
) -> None:
    data, goal = labelled_images(), tauten.Goal(max_drop=0.2)
    result = tauten.optimize(classifier, data, goal, pillars=("compress",))
    tried = {step.technique.name for trial in result.trials for step in trial.recipe.steps}
    assert tried >= {"prune_sparsegpt", "prune_channels", "distill"}
    failed = [trial.error for trial in result.trials if trial.measurement is None]
    assert len(failed) == 1 and "no channels to prune" in failed[0], "16 less a quarter is 8 or 16"
    with caplog.at_level("INFO", "tauten"):
        small = tauten.compress(classifier, data=data, goal=goal)
    assert f"compressed by {result.recipe}: {result.reason}" in caplog.text
    with torch.no_grad():
        assert torch.equal(small(data[0][0]), result.model(data[0][0]))


def test_a_goal_beside_a_technique_or_without_data_is_refused(classifier: nn.Module) -> None:
    goal = tauten.Goal(max_drop=0.2)
    with pytest.raises(InputError, match="either"):
        tauten.compress(classifier, technique="prune_channels", data=labelled_images(), goal=goal)
    with pytest.raises(InputError, match="data"):
        tauten.compress(classifier, goal=goal)


def test_unlabelled_data_is_measured_by_similarity() -> None:
    data = torch.randn(60, 10, generator=torch.manual_seed(4))
    result = tauten.optimize(tiny_mlp(), data, tauten.Goal(max_drop=0.01))
    assert result.test.metric == "similarity" and result.test.original == pytest.approx(1)
    assert 0 < result.test.drop.value < 0.01


def test_users_metric_decides() -> None:
    data = torch.randn(60, 10, generator=torch.manual_seed(4))

    expected = tiny_mlp()(data).argmax(1)

    def agreeing(model: nn.Module, batch: list[torch.Tensor]) -> torch.Tensor:
        return (model(batch[0]).argmax(1) == batch[1]).float()

    goal = tauten.Goal(max_drop=0.5)
    result = tauten.optimize(tiny_mlp(), [(data, expected)], goal, metric=agreeing)
    assert result.test.metric == "agreeing" and result.test.original == 1


def test_metric_that_fails_everywhere_says_why() -> None:
    def broken(model: nn.Module, batch: torch.Tensor) -> float:
        return float("nan") if "Packed" in repr(model) else 1.0

    with pytest.raises(TautenError, match=r"no recipe could be measured.*broken returned NaN"):
        tauten.optimize(tiny_mlp(), torch.randn(60, 10), metric=broken)


def test_unusable_data_is_refused(sensitive_folder: Path) -> None:
    with pytest.raises(InputError, match="too few"):
        tauten.optimize(sensitive_folder, ["one text"] * 5)
    with pytest.raises(InputError, match="too short"):
        tauten.optimize(sensitive_folder, [f"{i}" for i in range(30)])
    with pytest.raises(InputError, match="no tokenizer"):
        tauten.optimize(tiny_mlp(), "python-docs")
    with pytest.raises(InputError, match="something else than tensors"):
        tauten.optimize(tiny_mlp(), [1, 2, 3])
    with pytest.raises(InputError, match=r"can't be called on this data.*shapes"):
        tauten.optimize(tiny_mlp(), torch.randn(60, 11))
    assert len(read_texts("python-docs").documents) > 50


def test_model_that_breaks_is_a_recorded_failure(sensitive_folder, texts) -> None:
    """Candidates that return NaN fail their trials; others take their place."""
    original = tauten.KQuant.encode

    def broken(self: tauten.KQuant, weight: torch.Tensor, inputs: object = None) -> object:
        packed = original(self, weight)
        if self.bits == 4:
            packed.super_scale.fill_(torch.nan)
        return packed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tauten.KQuant, "encode", broken)
        result = tauten.optimize(sensitive_folder, texts, tauten.Goal(max_drop=0.05), **QUICK)
    failed = [trial for trial in result.trials if trial.error]
    assert failed and all("NaN or infinity" in trial.error for trial in failed)
    assert result.certified


def test_an_error_in_one_trial_is_recorded_and_the_search_goes_on(classifier: nn.Module) -> None:
    """Whatever class of error a technique raises."""

    class OwnError(Exception):
        pass

    original = tauten.KQuant.encode

    def broken(self: tauten.KQuant, weight: torch.Tensor, inputs: object = None) -> object:
        if self.bits == 4:
            raise OwnError("four")
        return original(self, weight, inputs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tauten.KQuant, "encode", broken)
        result = tauten.optimize(classifier, labelled_images(), tauten.Goal(max_drop=0.2))
    failed = [trial.error for trial in result.trials if trial.error]
    assert any(error.startswith("OwnError: four (test_optimize.py:") for error in failed)
    assert result.certified and result.model is not None


def test_a_certificate_that_cannot_be_measured_loses_no_run(
    classifier: nn.Module, tmp_path: Path
) -> None:
    """A metric that fails on the sealed split alone."""
    late = False
    certify = Evaluator.certify

    def correct(model: nn.Module, batch: list[torch.Tensor]) -> torch.Tensor:
        if late:
            raise ArithmeticError("late")
        return (model(batch[0]).argmax(1) == batch[1]).float()

    def certified(self: Evaluator, candidate: Candidate) -> Quality:
        nonlocal late
        late = True
        return certify(self, candidate)

    goal = tauten.Goal(max_drop=0.2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Evaluator, "certify", certified)
        data, out = labelled_images(), tmp_path / "o"
        result = tauten.optimize(classifier, data, goal, metric=correct, out=out)
    assert result.model is not None and not result.certified and result.test is None
    assert "raised ArithmeticError" in (out / "report.html").read_text()
    assert "not certified: the metric correct raised ArithmeticError('late')" in result.reason


def test_a_failed_memory_measurement_loses_no_run(
    sensitive_folder, texts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(model: str) -> int:
        raise subprocess.CalledProcessError(1, [model])

    monkeypatch.setattr("tauten.search.publish.resident_bytes", failing)
    tauten.optimize(
        sensitive_folder, texts, tauten.Goal(max_drop=0.05), out=tmp_path / "o", **QUICK
    )
    timing = json.loads((tmp_path / "o/timing.json").read_text())
    assert timing["chosen"]["rss_bytes"] is None and timing["chosen"]["median_s"] > 0
    assert (tmp_path / "o/report.html").is_file()
