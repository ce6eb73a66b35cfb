"""Calls are cut by rows only where that was proved to change nothing."""

import logging
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from parallel_layouts import laid_out
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_leaves

import tauten
from tauten.distributed.module import DistributedModule, Workers
from tauten.parallel.comparison import difference
from tauten.parallel.plan import Layout
from tauten.parallel.row_cuts import RowCuts, Verdict, call_in_parts


class Rows(nn.Module):
    """A function of a layer's outputs."""

    def __init__(self, after: Callable[..., Any]):
        super().__init__()
        self.layer, self.after = nn.Linear(4, 4), after

    def forward(self, x: Tensor, *more: Tensor) -> Any:
        """(rows, 4) -> what `after` makes of it."""
        return self.after(self.layer(x), *more)


def in_groups(x: Tensor) -> Tensor:
    """Rows normalized by the four that they lie in."""
    return torch.cat([rows - rows.mean(0) for rows in x.split(4)])


def bounded(x: Tensor) -> Tensor:
    """For exactly eight rows."""
    return x.view(8, 2, 2) if len(x) == 8 else x.new_full((len(x),), 7.0).view(8)


COUPLED = {
    "normalized over the batch": lambda x: x - x.mean(0),
    "by the largest of all": lambda x: x / x.max(),
    "sorted": lambda x: x.sort(0).values,
    "pairs of neighbours": lambda x: x + x.view(-1, 2, 4).flip(1).reshape(-1, 4),
    "halves": lambda x: torch.cat([x.chunk(2)[1], x.chunk(2)[0]]),
    "a sum over rows": lambda x: x.cumsum(0),
    "the best of the batch": lambda x: x.topk(3, 0).values,
    "groups of four": in_groups,
    "a mean": lambda x: x.mean(),
    "a loss beside outputs": lambda x: {"y": x, "loss": x.square().mean()},
    "the number of rows": lambda x: (x, len(x)),
    "turned": lambda x: x.T,
    "a fixed number of rows": bounded,
    "a matrix of similarities": lambda x: x @ x.T,
    "another tensor with as many rows": lambda x, keys: (x @ keys.T).softmax(1) @ keys,
}
FREE = {
    "rows": lambda x: x.relu(),
    "a tree": lambda x: {"y": x, "pair": (x + 1, "name")},
    "what is the same for all": lambda x: (x, torch.ones(3)),
    "a table as long as a part": lambda x: (x, torch.ones(4)),
}


def computed(model: nn.Module) -> Callable[[Sequence[Any], bool], list[Any]]:
    """Calls one after the other, as copies would."""
    return lambda calls, lend: [model(*args, **kwargs) for args, kwargs in calls]


@pytest.mark.parametrize("name", [*COUPLED, *FREE])
@torch.inference_mode()
def test_what_comes_back_is_the_models_whoever_calls(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    model = Rows((COUPLED | FREE)[name])
    cuts, seen = RowCuts("Rows", 1e-3), []
    compute = computed(model)

    def counted(calls: Sequence[Any], lend: bool) -> list[Any]:
        seen.append(len(calls))
        return compute(calls, lend)

    # Two rows can't tell groups of four, nor can most find fault with one.
    for rows in (8, 2, 8, 16, 8) if "fixed" not in name else (8, 8):
        x = torch.randn(rows, 4)
        more = (torch.randn(rows, 4),) if "another" in name else ()
        if name == "the best of the batch" and rows < 3:
            continue
        made = call_in_parts(cuts, counted, ((x, *more), {}), copies=2)
        expected = model(x, *more)
        assert str(tree_flatten(made)[1]) == str(tree_flatten(expected)[1])
        for one, other in zip(tree_leaves(made), tree_leaves(expected), strict=True):
            if isinstance(one, Tensor):
                torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
            else:
                assert one == other
    assert bool(cuts.refusal) == (name in COUPLED)
    assert caplog.text.count("each call runs whole") == (name in COUPLED)
    if name in FREE:
        assert seen == [1, 2, 2, 2, 1, 2, 2], "the first, and the first of more rows, are proofs"


@torch.inference_mode()
def test_a_small_call_proves_nothing_of_large_ones() -> None:
    """Such as experts that overflow with so many rows."""
    model = Rows(lambda x: x - x.mean(0) if len(x) > 4 else x)
    cuts = RowCuts("Rows", 1e-3)
    for rows in (1, 4, 3, 12):
        x = torch.randn(rows, 4)
        made = call_in_parts(cuts, computed(model), ((x,), {}), copies=2)
        torch.testing.assert_close(made, model(x), atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_outputs_padded_to_each_parts_length_run_whole(caplog: pytest.LogCaptureFixture) -> None:
    """Only some data tells: parts of other lengths can't be joined."""
    model = Rows(lambda x, lengths: x[:, : int(lengths.max())])
    cuts = RowCuts("Rows", 1e-3)
    for lengths in ([3, 3, 3, 3], [1, 1, 2, 4], [2, 2, 2, 2]):
        call = ((torch.randn(4, 4), torch.tensor(lengths)), {})
        made = call_in_parts(cuts, computed(model), call, copies=2)
        torch.testing.assert_close(made, model(*call[0]))
    assert "runs whole on one worker" in caplog.text


@pytest.mark.parametrize("layout", [Layout(data=2)], ids=str)
def test_workers_compute_whole_what_cant_be_cut(layout: Layout) -> None:
    model, x = Rows(COUPLED["normalized over the batch"]), torch.randn(6, 4)
    with laid_out(model, layout) as parallel, torch.no_grad():
        for _ in range(2):
            torch.testing.assert_close(parallel(x), model(x))


def test_plans_dont_cut_what_cant_be_cut(caplog: pytest.LogCaptureFixture) -> None:
    class Slow(nn.Module):
        """Enough work for two."""

        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(*(nn.Linear(1024, 1024) for _ in range(4)))

        def forward(self, x: Tensor) -> Tensor:
            return self.layers(x) - x.mean(0)

    model, x = Slow().eval(), torch.randn(256, 1024)
    caplog.set_level(logging.WARNING)
    with (
        tauten.parallelize(model, example_inputs=x, workers=2, mode="data") as parallel,
        torch.no_grad(),
    ):
        assert parallel.plan.layout.workers == 1
        assert "can't be cut by rows" in parallel.plan.reason
        torch.testing.assert_close(parallel(x), model(x), atol=1e-4, rtol=1e-4)


def test_a_distributed_module_tells_why_its_calls_run_whole() -> None:
    cuts = RowCuts("Net", 1e-5)
    cuts.settle(((torch.ones(2),), {}), Verdict("outputs of its parts differ by 3"))
    cluster: Any = SimpleNamespace(workers=["one", "two"], close=lambda: None)
    many = DistributedModule(lambda: Workers(cluster, None, cuts), "Net", str)
    assert many.cluster is cluster
    assert "Net on 2 workers; a batch of Net can't be cut by rows" in repr(many)


@pytest.mark.parametrize(
    ("one", "other", "is_near"),
    [
        ([1.0, 2.0], [1.0, 2.001], True),
        ([1.0, 2.0], [1.0, 2.1], False),
        ([1.0, float("nan")], [1.0, 2.0], False),
        ([1.0, 2.0], [1.0, float("nan")], False),
        ([1.0, float("-inf")], [1.0, float("-inf")], True),
        ([1.0, float("inf")], [1.0, float("-inf")], False),
        ([1.0, float("nan")], [1.0, float("nan")], True),
        ([], [], True),
        ([1 + 2j], [1 + 2j], True),
        ([1 + 2j], [1 - 2j], False),
        ([1, 2], [1, 3], False),
    ],
)
def test_outputs_that_arent_finite_count_too(one: Any, other: Any, is_near: bool) -> None:
    assert (difference(torch.tensor(one), torch.tensor(other)) < 1e-2) is is_near


def test_planning_leaves_the_models_state_alone() -> None:
    class Counts(nn.Module):
        """Counts its calls, which its outputs don't tell."""

        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(*(nn.Linear(512, 512) for _ in range(4)))
            self.register_buffer("calls", torch.zeros(()))
            self.calls: Tensor

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return self.layers(x)

    model, x = Counts().eval(), torch.randn(64, 512)
    with tauten.parallelize(model, example_inputs=x, workers=2) as parallel, torch.no_grad():
        torch.testing.assert_close(parallel(x), model.layers(x), atol=1e-4, rtol=1e-4)
    assert model.calls == 0
