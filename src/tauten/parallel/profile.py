"""What a model costs, measured on a call: by rows, threads and blocks."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tauten.core.rows import count_rows, cut_rows
from tauten.core.trees import tensors_of
from tauten.models.structure import find_structure
from tauten.parallel.pipeline_parallel import ChainShape, proved_chain
from tauten.parallel.tensor_parallel import TensorPlan
from tauten.runtime.modules import PackedEmbedding

_REPEAT_S = 0.6  # short calls are timed again until this has passed
_MOST_REPEATS = 15


@dataclass(frozen=True)
class Profile:
    """Costs of a call.

    Attributes:
        rows: Of the call.
        base_s: By threads: seconds of a call whatever its rows, by a straight line.
        row_s: By threads: seconds of each row.
        blocks_share: Share of the time that each block takes; the rest is before and after.
        ends_share: Share of what is before the blocks, and after.
        chain: How blocks hand on their state; None where they don't.
        state_bytes: That blocks hand on, at these rows.
        summed_bytes: By its name: of the output of each layer that workers would put together.
        input_bytes, output_bytes: Of the call.
    """

    rows: int
    base_s: dict[int, float]
    row_s: dict[int, float]
    blocks_share: tuple[float, ...]
    ends_share: tuple[float, float]
    chain: ChainShape | None
    state_bytes: int
    summed_bytes: dict[str, int]
    input_bytes: int
    output_bytes: int

    def call_s(self, rows: float, threads: int) -> float:
        """Predicted seconds of a call of so many rows on one worker."""
        return self.base_s[threads] + self.row_s[threads] * rows


def measure(
    model: nn.Module,
    inputs: tuple[Any, Any],
    tensor: TensorPlan,
    counts: Sequence[int],
    is_cuttable: Callable[[Any], bool] = lambda outputs: True,
) -> tuple[Profile, Any]:
    """Profile a call.

    Args:
        model: Called in this process.
        inputs: Positional and keyword arguments.
        tensor: Layers whose outputs would be put together.
        counts: Threads that workers might have.
        is_cuttable: By its outputs: whether it may be cut by rows, to tell what each takes.
    Returns:
        The profile, and the outputs of the call.
    """
    rows = count_rows(inputs)
    trace = Trace(model, tensor)
    outputs: Any = None
    lines = {}
    for count in sorted(counts, reverse=True):
        with with_threads(count):
            lines[count], made = _line_s(trace, model, inputs, is_cuttable)
        outputs = made if outputs is None else outputs
    shares, chain = trace.shares(), trace.chain()
    if chain is not None:
        chain = proved_chain(model, chain, trace.state, inputs, outputs)
    return Profile(
        rows=rows,
        base_s={count: base_s for count, (base_s, _) in lines.items()},
        row_s={count: row_s for count, (_, row_s) in lines.items()},
        blocks_share=shares[1:-1],
        ends_share=(shares[0], shares[-1]),
        chain=chain,
        state_bytes=trace.state_bytes,
        summed_bytes=trace.summed_bytes,
        input_bytes=tree_bytes(inputs),
        output_bytes=tree_bytes(outputs),
    ), outputs


class Trace:
    """How a call goes through a model's blocks, and how long each takes.

    Args:
        model: Hooks stand in it while it is watched.
        tensor: Layers whose outputs are of interest.
    """

    def __init__(self, model: nn.Module, tensor: TensorPlan):
        self._model = model
        self._names = find_structure(model).blocks or _children(model)
        self._cuts = [cut.layer for cut in tensor.cuts if cut.dim == 1 or cut.gathered]
        self._reset()

    def _reset(self) -> None:
        self._calls: list[str] = []
        self._states: list[tuple[int, int]] = []  # identity of what a block was given, and made
        self._kept: list[Any] = []  # so that no identity is used twice
        self._times: list[float] = []
        self._returned: set[int] = set()  # values in a tuple that blocks return; 0 for no tuple
        self._several = False  # blocks return more than the state
        self._used: dict[str, set[str]] = {}
        self.state: Any = None  # that the last block was given
        self.state_bytes = 0
        self.summed_bytes: dict[str, int] = {}

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Follow the calls that are made meanwhile."""
        self._reset()
        handles = []
        for name in self._names:
            block = self._model.get_submodule(name)
            handles.append(block.register_forward_pre_hook(self._enter(name), with_kwargs=True))
            handles.append(block.register_forward_hook(self._leave))
        for name, module in self._outer_layers():
            handles.append(module.register_forward_hook(self._note(name)))
        for name in self._cuts:
            layer = self._model.get_submodule(name)
            handles.append(layer.register_forward_hook(self._weigh(name)))
        self._times.append(time.perf_counter())
        try:
            yield
        finally:
            self._times.append(time.perf_counter())
            self._kept.clear()
            for handle in handles:
                handle.remove()

    @property
    def total_s(self) -> float:
        """Of the call that was watched."""
        return self._times[-1] - self._times[0]

    def shares(self) -> tuple[float, ...]:
        """Share of the time before the blocks, of each block, and after them."""
        if self.chain() is None:
            return (1.0, 0.0)
        begin, *inside, end = self._times
        spans = [b - a for a, b in zip(inside[::2], inside[1::2], strict=True)]
        spans = [inside[0] - begin, *spans, end - inside[-1]]
        return tuple(span / sum(spans) for span in spans)

    def chain(self) -> ChainShape | None:
        """How blocks hand on their state; None where they are no chain."""
        links = zip(self._states, self._states[1:], strict=False)
        chained = not self._several and all(made == given for (_, made), (given, _) in links)
        if len(self._names) < 2 or tuple(self._calls) != tuple(self._names) or not chained:
            return None
        first = [
            (name, _features(self._model.get_submodule(name)))
            for name, when in self._used.items()
            if when == {"before"} and _features(self._model.get_submodule(name))
        ]
        last = [name for name, when in self._used.items() if when == {"after"}]
        return ChainShape(tuple(self._names), max(self._returned), tuple(first), tuple(last))

    def _outer_layers(self) -> Iterator[tuple[str, nn.Module]]:
        prefixes = tuple(f"{name}." for name in self._names)
        for name, module in self._model.named_modules():
            is_leaf = not list(module.children()) or hasattr(module, "packed")
            if name and is_leaf and not f"{name}.".startswith(prefixes):
                yield name, module

    def _enter(self, name: str) -> Any:
        def hook(_: Any, args: Any, kwargs: Any) -> None:
            state = next((x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)), None)
            self._calls.append(name)
            self._states.append((id(state), 0))
            self._kept.append(state)
            self.state = state
            self._times.append(time.perf_counter())

        return hook

    def _leave(self, _: Any, __: Any, made: Any) -> None:
        self._times.append(time.perf_counter())
        self._returned.add(len(made) if isinstance(made, tuple) else 0)
        state, *more = made if isinstance(made, tuple) else (made,)
        self._several |= any(value is not None for value in more)
        self._states[-1] = (self._states[-1][0], id(state))
        self._kept.append(state)
        self.state_bytes = max(self.state_bytes, tree_bytes(state))

    def _note(self, name: str) -> Any:
        def hook(*_: Any) -> None:
            done = len(self._calls)
            when = "before" if not done else "after" if done == len(self._names) else "between"
            self._used.setdefault(name, set()).add(when)

        return hook

    def _weigh(self, name: str) -> Any:
        def hook(_: Any, __: Any, made: Any) -> None:
            self.summed_bytes[name] = tree_bytes(made)

        return hook


def fastest_s(call: Any, agree: Callable[[bool], bool] = bool) -> float:
    """Fastest of a few calls: other work on the machine only ever adds; long ones run once.

    Args:
        call: Is timed.
        agree: Of whether to go on, where processes call together: they measure different times.
    """
    times: list[float] = []
    while agree(sum(times) < _REPEAT_S and len(times) < _MOST_REPEATS):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


def tree_bytes(tree: Any) -> int:
    """Bytes of the tensors of a tree."""
    return sum(tensor.nbytes for tensor in tensors_of(tree))


def _line_s(
    trace: Trace, model: nn.Module, inputs: tuple[Any, Any], is_cuttable: Callable[[Any], bool]
) -> tuple[tuple[float, float], Any]:
    """Seconds of a call whatever its rows, and of each row, by all rows and half of them; outputs.

    Long calls are run once.
    """
    rows = count_rows(inputs)
    all_s, outputs = _traced(trace, model, inputs)
    few = max(1, rows // 2) if is_cuttable(outputs) else rows
    if all_s < _REPEAT_S:
        all_s = min(all_s, *(_traced(trace, model, inputs)[0] for _ in range(2)))
    if few == rows:
        return (0.0, all_s / rows), outputs
    half = cut_rows(inputs, [few, rows - few])[0]
    half_s = fastest_s(lambda: _call(model, half))
    row_s = min(max((all_s - half_s) / (rows - few), 0.0), all_s / rows)
    return (all_s - row_s * rows, row_s), outputs


def _traced(trace: Trace, model: nn.Module, inputs: tuple[Any, Any]) -> tuple[float, Any]:
    with trace.watching():
        outputs = _call(model, inputs)
    return trace.total_s, outputs


@torch.inference_mode()
def _call(model: nn.Module, inputs: tuple[Any, Any]) -> Any:
    return model(*inputs[0], **inputs[1])


@contextmanager
def with_threads(count: int) -> Iterator[None]:
    """Compute with so many threads for a while."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _children(model: nn.Module) -> tuple[str, ...]:
    """A plain sequence's modules are its blocks, where nothing in it repeats."""
    return tuple(name for name, _ in model.named_children()) if type(model) is nn.Sequential else ()


def _features(module: nn.Module) -> int:
    """Of an embedding whose table is its own; 0 of other modules."""
    if isinstance(module, nn.Embedding) and module._parameters.get("weight") is not None:
        return module.embedding_dim
    return module.packed.in_features if isinstance(module, PackedEmbedding) else 0
