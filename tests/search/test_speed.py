"""A latency goal keeps no format and no model that is slower; timings here are made up."""

import io
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console
from tiny_models import tiny_cnn, tiny_gpt2, tiny_llama, tiny_mlp
from torch import Tensor, nn

import tauten
from tauten.core.errors import GoalError
from tauten.core.journal import Journal
from tauten.core.recipe import Recipe, Step
from tauten.evaluation.formats import layer_inputs
from tauten.evaluation.latency import Latency
from tauten.models.structure import find_structure
from tauten.report.html import render_html
from tauten.report.terminal import print_result
from tauten.runtime import library
from tauten.search import speed
from tauten.search.ladder import ladder
from tauten.search.publish import time_candidate
from tauten.search.speed import FormatGuard

TOKEN = torch.zeros(1, 1, dtype=torch.long)
DATA = torch.randn(60, 10, generator=torch.manual_seed(4))


class MadeUp:
    """Seconds of a packed layer, where unpacked it takes 1, by a rule of shape and activation."""

    def __init__(self, rule: Any) -> None:
        self.rule, self.calls = rule, 0

    def __call__(
        self, module: nn.Module, packed: Any, activation: str, x: Tensor
    ) -> tuple[float, float]:
        self.calls += 1
        return 1.0, self.rule(tuple(module.weight.shape), packed, activation)


@pytest.fixture
def made_up(monkeypatch: pytest.MonkeyPatch) -> Any:
    def install(rule: Any, overhead: float = 0.0) -> MadeUp:
        timer = MadeUp(rule)
        monkeypatch.setattr(speed, "time_packed", timer)
        monkeypatch.setattr(speed, "call_overhead", lambda technique: overhead)
        return timer

    return install


def guard_of(model: nn.Module, call: Any, journal: Path) -> FormatGuard:
    structure, inputs = find_structure(model), layer_inputs(model, call)
    return FormatGuard(model, structure, inputs, Journal(journal, {}))


def language_guard(model: nn.Module, journal: Path) -> FormatGuard:
    return guard_of(model, lambda: model(input_ids=TOKEN), journal)


def decisions(model: nn.Module, recipe: Recipe) -> dict[str, str]:
    names = [name for unit in find_structure(model).units for name in unit.names]
    found = {name: recipe.step_for(name) for name in names}
    return {name: str(step[1].technique) if step else "" for name, step in found.items()}


def test_fast_formats_leave_recipes_as_they_are(made_up: Any, tmp_path: Path) -> None:
    made_up(lambda *_: 0.5)
    model = tiny_llama()
    recipes = ladder(find_structure(model), "quantize")
    guard = language_guard(model, tmp_path / "j")
    assert guard.fast(recipes) == recipes and not guard.reverts


def test_a_slow_unit_stays_unpacked_in_all_blocks(made_up: Any, tmp_path: Path) -> None:
    """Queries, keys and values decide together: 3 * 1 against 0.5 + 2 * 3."""
    made_up(lambda shape, *_: 3.0 if shape == (32, 64) else 0.5)
    model = tiny_llama()
    guard = language_guard(model, tmp_path / "j")
    (made,) = guard.fast([Recipe.of(tauten.RTN(4, 32, activation="int8"))])
    for name, technique in decisions(model, made).items():
        assert bool(technique) == (name.split(".")[-1] not in ("q_proj", "k_proj", "v_proj")), name
    assert "model.layers.*.mlp.gate_proj" in made.steps[0].where
    (revert,) = guard.reverts
    assert revert["layer"] == "Linear 64 x 64 + Linear 32 x 64 + Linear 32 x 64"
    assert (revert["unpacked_s"], revert["packed_s"]) == (3.0, 6.5)
    assert revert["instead"] == "unpacked"


def test_a_faster_format_is_taken_instead(made_up: Any, tmp_path: Path) -> None:
    made_up(lambda shape, packed, activation: 2.0 if activation == "float" else 0.5)
    model = tiny_llama()
    inside, outside = tauten.RTN(4, 32), tauten.RTN(8, 0, "none")
    guard = language_guard(model, tmp_path / "j")
    (made,) = guard.fast([Recipe((Step(inside, "model.layers.*"), Step(outside)))])
    for name, technique in decisions(model, made).items():
        bits = "group_size=32" if "layers" in name else "bits=8"
        assert bits in technique and "activation=int8" in technique, name
    assert all("activation=int8" in revert["instead"] for revert in guard.reverts)


def test_a_recipe_that_nothing_is_left_of_is_not_tried(made_up: Any, tmp_path: Path) -> None:
    made_up(lambda *_: 2.0)
    guard = language_guard(tiny_gpt2(), tmp_path / "j")
    assert guard.fast([Recipe.of(tauten.Int8()), Recipe.of(tauten.RTN(4))]) == []
    assert len({revert["format"] for revert in guard.reverts}) == 2


@pytest.mark.skipif(library.load() is None, reason="the native library isn't built")
def test_the_native_decoder_makes_no_calls(made_up: Any, tmp_path: Path) -> None:
    """The time of a call counts only where Python calls layers."""
    made_up(lambda *_: 1.5, overhead=0.8)
    recipe = Recipe.of(tauten.RTN(4, 32, activation="int8"))
    decoded, called = tiny_llama(), tiny_gpt2()
    assert language_guard(decoded, tmp_path / "a").fast([recipe]) == [recipe]
    assert language_guard(called, tmp_path / "b").fast([recipe]) == []
    codebooks, wider = (Recipe.of(tauten.ShareKMeans(bits=bits)) for bits in (4, 5))
    assert language_guard(decoded, tmp_path / "c").fast([codebooks, wider]) == [codebooks]
    # One unit that is slower even so: the model isn't decoded natively, and the others' calls count
    made_up(lambda shape, *_: 9.0 if shape == (64, 96) else 1.5, overhead=0.8)
    assert language_guard(decoded, tmp_path / "d").fast([recipe]) == []


def test_convolutions_are_timed_on_their_own_input(made_up: Any, tmp_path: Path) -> None:
    shapes = set()

    def rule(shape: tuple[int, ...], *_: object) -> float:
        shapes.add(shape)
        return 0.5

    made_up(rule)
    model = tiny_cnn()
    guard = guard_of(model, lambda: model(torch.randn(3, 1, 12, 12)), tmp_path / "j")
    assert guard.fast([Recipe.of(tauten.Int8())])
    assert {(16, 16, 3, 3), (16, 4, 3, 3), (4, 16)} <= shapes


def test_a_decision_is_read_back_after_a_kill(made_up: Any, tmp_path: Path) -> None:
    recipes = [Recipe.of(tauten.Int8()), Recipe.of(tauten.RTN(4, 32))]
    made_up(lambda shape, *_: 3.0 if shape == (64, 96) else 0.5)
    first = language_guard(tiny_llama(), tmp_path / "j")
    made = first.fast(recipes)
    assert made != recipes
    again = made_up(lambda *_: 0.1)  # by now the machine would decide otherwise
    second = language_guard(tiny_llama(), tmp_path / "j")
    assert second.fast(recipes) == made and second.reverts == first.reverts
    assert again.calls == 0


def latencies(*candidates: float) -> Any:
    """A stand-in of `compare_latency`: the original takes 1, each timed candidate its figure."""
    figures: Iterator[float] = itertools.chain(candidates, itertools.repeat(candidates[-1]))

    def compare(models: dict[str, nn.Module], *_: object) -> dict[str, Latency]:
        return {n: Latency(1.0 if n == "original" else next(figures), 0.1) for n in models}

    return compare


def optimized(monkeypatch: pytest.MonkeyPatch, compare: Any, out: Path, **goal: Any) -> Any:
    for room in ("evaluator", "publish"):
        monkeypatch.setattr(f"tauten.search.{room}.compare_latency", compare)
    return tauten.optimize(tiny_mlp(), DATA, tauten.Goal(max_drop=0.5, **goal), out=out)


@pytest.mark.parametrize("goal", [{"minimize": "latency"}, {"max_latency_s": 5.0}])
def test_slower_models_leave_the_original(
    made_up: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, goal: Any
) -> None:
    made_up(lambda *_: 0.5)
    result = optimized(monkeypatch, latencies(2.0), tmp_path / "out", **goal)
    assert result.certified and not result.recipe.steps
    assert "the original is kept" in result.reason and result.test.drop.value == 0
    assert {t.verdict for t in result.trials[:-1]} == {"slower than the original on this machine"}
    loaded = tauten.load(tmp_path / "out", tiny_mlp())
    assert torch.equal(loaded(DATA), tiny_mlp()(DATA))


def test_the_last_timing_reverts_too(
    made_up: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    made_up(lambda *_: 0.5)
    monkeypatch.setattr("tauten.search.evaluator.compare_latency", latencies(0.5))
    monkeypatch.setattr("tauten.search.publish.compare_latency", latencies(1.5))
    goal = tauten.Goal(max_drop=0.5, minimize="latency")
    result = tauten.optimize(tiny_mlp(), DATA, goal, out=tmp_path / "out")
    assert not result.recipe.steps and "timed again" in result.reason
    assert result.timing["given_up"]["median_s"] == 1.5
    assert result.timing["chosen"] == result.timing["original"]
    html = (tmp_path / "out/report.html").read_text()
    assert "The recipe chosen was 1.5x slower than the original" in html


def test_reports_say_what_was_reverted(
    made_up: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    made_up(lambda shape, *_: 4.0 if shape == (20, 10) else 0.5)
    result = optimized(monkeypatch, latencies(0.5), tmp_path / "out", minimize="latency")
    assert "0" not in result.recipe.steps[0].where.split(", ")
    manifest = json.loads((tmp_path / "out/tauten.json").read_text())
    timing = json.loads((tmp_path / "out/timing.json").read_text())
    assert [row["latency_s"] for row in timing["trials"]][:1] == [0.5]
    assert "latency_s" not in manifest["trials"][0]["measurement"]
    assert manifest["reverted"] and "packed_s" not in manifest["reverted"][0]
    assert {row["layer"] for row in timing["formats"]} == {"Linear 20 x 10"}
    html = render_html(manifest, timing)
    assert "Linear 20 x 10" in html and "4.0x slower" in html
    console = Console(width=200, file=io.StringIO())
    print_result(manifest, timing, console)
    assert "Linear 20 x 10 in int8: 4.0x slower; instead unpacked" in console.file.getvalue()


def test_models_that_are_streamed_can_not_be_timed(
    llama_folder: Path, texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tauten.search.forecast.available_memory_bytes", lambda: 0)
    with pytest.raises(GoalError, match="must be in memory to be timed"):
        tauten.optimize(llama_folder, texts, tauten.Goal(minimize="latency"), max_tokens=1500)


def test_the_last_timing_is_read_back_after_a_kill(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    splits = SimpleNamespace(development=[DATA])
    task = SimpleNamespace(splits=splits, is_text=False)
    evaluator = SimpleNamespace(original=tiny_mlp, open=lambda _: tiny_mlp())
    search: Any = SimpleNamespace(evaluator=evaluator, task=task)

    def timed(*figures: float) -> dict[str, Any]:
        monkeypatch.setattr("tauten.search.publish.compare_latency", latencies(*figures))
        journal = Journal(tmp_path / "j", {})
        candidate: Any = SimpleNamespace(journal=journal, recipe=Recipe.of(tauten.Int8()))
        return time_candidate(search, candidate)

    first = timed(1.5)
    assert first["chosen"]["median_s"] == 1.5
    assert timed(0.1) == first
