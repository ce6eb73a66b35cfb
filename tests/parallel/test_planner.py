"""The planner's decisions, on a bench that says what layouts cost."""

from pathlib import Path
from typing import Any

import pytest
import torch
from parallel_layouts import without_cache
from tiny_models import tiny_cnn, tiny_llama
from torch import nn

import tauten
from tauten.core.errors import InputError, WorkerError
from tauten.parallel import planner, trials
from tauten.parallel.comparison import difference
from tauten.parallel.cost_model import Division, Link, Links, call_s, stage_ends
from tauten.parallel.footprint import weight_bytes
from tauten.parallel.plan import Layout, Plan, layouts
from tauten.parallel.planner import Planner, Task
from tauten.parallel.profile import Profile
from tauten.parallel.row_cuts import RowCuts
from tauten.parallel.tensor_parallel import tensor_plan

TOKENS = torch.arange(8 * 12).view(8, 12) * 5 % 256
FAST = Links(Link(0.0, 1e12), Link(0.0, 1e12), Link(0.0, 1e12))
ONE = Layout(threads=2)
DATA, TENSOR = Layout(data=2), Layout(tensor=2)


class Stage:
    """Layouts that cost what a test says, and compute what the model does unless they are wrong."""

    def __init__(self, model: nn.Module, wrong: Any, dying: Any):
        self.model, self.wrong, self.dying = model, wrong, dying
        self.cuts = RowCuts("llama", 1e-3)
        self.loaded: list[Layout] = []
        self.calls = 0

    def links(self) -> Links:
        return FAST

    def load(self, layout: Layout, ends: Any, chain: Any) -> None:
        if layout in self.dying:
            raise WorkerError("worker 1 was killed by signal 9")
        self.loaded.append(layout)

    @torch.inference_mode()
    def call(self, method: str, args: Any, kwargs: Any) -> Any:
        self.calls += 1
        made = self.model(*args, **kwargs)
        if self.loaded[-1] in self.wrong:
            made.logits = made.logits + 1
        return made

    def agree(self, value: Any) -> Any:
        return value


def plan_with(
    monkeypatch: pytest.MonkeyPatch,
    seconds: dict[Layout, float],
    wrong: Any = (),
    dying: Any = (),
    **task: Any,
) -> Plan:
    """A plan in which nothing is timed: one worker with two threads takes a second."""
    model = without_cache(tiny_llama())
    bench = Stage(model, wrong, dying)

    def timed(call: Any, agree: Any = bool) -> float:
        before = bench.calls
        call()
        return seconds.get(bench.loaded[-1], 9.0) if bench.calls > before else 1.0

    monkeypatch.setattr(trials, "fastest_s", timed)
    monkeypatch.setattr("tauten.parallel.profile._REPEAT_S", 1e-9)
    monkeypatch.setattr(planner, "call_s", lambda o, *_: seconds.get(o, 1.0 if o == ONE else 9.0))
    wanted = {"workers": 2, "threads": 2, "mode": "auto", "goal": "throughput", "limit_bytes": None}
    fields = {"name": "llama", "model": model, "fits": True, "inputs": ((TOKENS,), {})}
    plan = Planner(Task(**{**fields, **wanted, **task}), bench).run()
    assert plan.layout.workers == 1 or bench.loaded[-1] == plan.layout
    return plan


def test_the_fastest_of_the_best_three_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = {DATA: 0.6, TENSOR: 0.5}
    plan = plan_with(monkeypatch, seconds)
    assert plan.layout == TENSOR and "2.00 times as fast" in plan.reason
    assert [option.layout for option in plan.options[:2]] == [TENSOR, DATA]
    assert plan.options[0].difference < 1e-5


def test_one_worker_is_kept_where_splitting_loses(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_with(monkeypatch, {DATA: 1.4, TENSOR: 1.6})
    assert plan.layout == ONE
    assert "doesn't pay: 1.00 s" in plan.reason and "1.40 s with data 2" in plan.reason


def test_layouts_that_compute_something_else_or_die_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pipeline = Layout(pipeline=2)
    seconds = {DATA: 0.5, TENSOR: 0.6, pipeline: 0.8}
    plan = plan_with(monkeypatch, seconds, wrong=[DATA], dying=[TENSOR])
    assert plan.layout == pipeline
    refusals = {option.layout: option.refusal for option in plan.options}
    assert "outputs differ" in refusals[DATA] and "signal 9" in refusals[TENSOR]


def test_the_memory_goal_takes_the_least_and_limits_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = {DATA: 0.5, TENSOR: 2.0, Layout(pipeline=2): 0.7}
    plan = plan_with(monkeypatch, seconds, goal="memory")
    assert plan.layout == TENSOR and plan.options[0].memory_bytes < plan.options[-1].memory_bytes
    limit = plan.options[-1].memory_bytes - 1
    plan = plan_with(monkeypatch, seconds, limit_bytes=limit, fits=False)
    assert plan.layout == Layout(pipeline=2) and "can't hold it" in plan.reason
    with pytest.raises(InputError, match=r"no layout of up to 2 workers.*room for 1 B"):
        plan_with(monkeypatch, seconds, limit_bytes=1, fits=False)


def test_latency_is_of_a_single_row(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_with(monkeypatch, {TENSOR: 0.5}, goal="latency")
    assert plan.rows == 1 and plan.inputs["args"] == [{"shape": [1, 12], "dtype": "int64"}]
    assert all(option.layout.data == 1 for option in plan.options)


def test_a_plan_comes_back_from_its_file_and_is_used_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    plan = plan_with(monkeypatch, {Layout(pipeline=2, microbatches=4): 0.5})
    plan.save(tmp_path / "plan.json")
    assert Plan.read(tmp_path / "plan.json") == plan
    with tauten.parallelize(tiny_llama(), plan=tmp_path / "plan.json") as parallel:
        assert parallel.plan == plan and len(parallel.worker_pids) == 2
        assert parallel(TOKENS).logits.shape == (8, 12, 256)
    (tmp_path / "plan.json").write_text("{}")
    with pytest.raises(InputError, match="make one with"):
        Plan.read(tmp_path / "plan.json")


def test_every_layout_is_thought_of_once() -> None:
    found = list(layouts(4, rows=8, blocks=3, tensor=2, threads=8, mode="auto"))
    assert len(set(found)) == len(found)
    assert found[:3] == [Layout(threads=8), Layout(threads=4), Layout(threads=1)]
    sizes = {(o.data, o.tensor, o.pipeline) for o in found}
    expected = {(1, 1, 1), (2, 1, 1), (1, 2, 1), (1, 1, 2), (3, 1, 1), (1, 1, 3), (4, 1, 1)}
    assert sizes == expected | {(2, 2, 1), (2, 1, 2), (1, 2, 2)}
    assert {o.microbatches for o in found if o.pipeline == 2 and o.data == 1} == {1, 2, 4, 8}
    assert {o.threads for o in found if o.workers == 3} == {2}
    assert all(o.data == o.workers for o in layouts(4, 8, 3, 2, 4, "data"))
    assert {o.threads for o in layouts(1, 8, 3, 2, 1, "auto")} == {1}
    assert all(o.data == 1 for o in layouts(4, 8, 3, 2, 4, "task"))
    assert all(o.data <= 2 for o in layouts(4, 2, 0, 1, 4, "auto"))


def profile(**changes: Any) -> Profile:
    fields = {
        "rows": 8,
        "base_s": {1: 0.0, 2: 0.0},
        "row_s": {1: 1.0, 2: 0.5},
        "blocks_share": (0.25, 0.25, 0.25, 0.25),
        "ends_share": (0.0, 0.0),
        "chain": None,
        "state_bytes": 800,
        "summed_bytes": {"a": 1600},
        "input_bytes": 0,
        "output_bytes": 0,
    }
    return Profile(**{**fields, **changes})


def test_predictions_are_those_of_arithmetic() -> None:
    half = Division(share=0.5, units=3)
    assert call_s(Layout(threads=2), profile(), FAST, half) == 4.0
    assert call_s(DATA, profile(), FAST, half) == pytest.approx(4.0)
    assert call_s(Layout(pipeline=2), profile(), FAST, half) == pytest.approx(8.0)
    # Two stages of half the work, four micro-batches of two rows: five steps of one second each.
    assert call_s(Layout(pipeline=2, microbatches=4), profile(), FAST, half) == pytest.approx(5.0)
    # Half of the work is dealt out, two of three keys to the first worker.
    assert call_s(TENSOR, profile(), FAST, half) == pytest.approx(8 * (1 - 0.5 / 3))
    slow = Links(Link(0.5, 1e9), Link(1.0, 1600.0), Link(2.0, 800.0))
    assert call_s(TENSOR, profile(), slow, half) == pytest.approx(8 * (1 - 0.5 / 3) + 2 + 0.5)
    assert call_s(Layout(pipeline=2), profile(), slow, half) == pytest.approx(8 + 3 + 0.5)
    assert stage_ends(profile(ends_share=(0.0, 0.5)), 2) == (3, 4)


def test_memory_is_that_of_the_tensors() -> None:
    model = tiny_llama(tied=False)
    total = sum(p.nbytes for p in model.parameters())
    plan = tensor_plan(model)
    assert weight_bytes(model, DATA, (), None, plan) == total
    cut = sum(model.get_submodule(c.layer).weight.nbytes for c in plan.cuts)
    assert weight_bytes(model, TENSOR, (), None, plan) == total - cut // 2
    packed = tauten.quantize(model, 4)
    assert weight_bytes(packed, DATA, (), None, tensor_plan(packed)) < total / 4


def test_differences_are_relative_and_shapes_count() -> None:
    x = torch.tensor([1.0, -4.0])
    assert difference({"a": x}, {"a": x}) == 0 and difference(x + 0.4, x) == pytest.approx(0.1)
    for other in (x[:1], (x, x), torch.tensor([1, 2])):
        assert difference(other, x) == float("inf")
    assert difference(torch.tensor([1, 2]), torch.tensor([1, 3])) == float("inf")


def test_bad_arguments_are_named() -> None:
    for wrong, message in (
        ({"mode": "model"}, "mode='model': expected one of auto, data, task"),
        ({"goal": "size"}, "goal='size'"),
        ({"workers": 0}, "workers=0"),
        ({"workers": "two"}, "workers='two'"),
        ({"example_inputs": 3}, "example_inputs is a int"),
        ({"example_inputs": torch.empty(0, 3)}, "no rows"),
    ):
        with pytest.raises(InputError, match=message.replace("(", r"\(")):
            tauten.parallelize(tiny_cnn(), **{"workers": 2, **wrong})
