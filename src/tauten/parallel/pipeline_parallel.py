"""Pipeline parallel: every worker holds some blocks, and hands what they make to the next.

A stage runs the model's own forward, so that masks and positions are made as ever, with other
stages' blocks passing on what they are given. The batch goes through in micro-batches, so that all
stages have work at once (GPipe, Huang et al. 2019, arXiv:1811.06965).
"""

import contextlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from tauten.core.rows import count_rows, cut_rows
from tauten.core.trees import leaves_of, map_tensors
from tauten.models.batch import MISFITS
from tauten.models.chain import state_of, with_state, wrapped
from tauten.models.observer import NothingLeft
from tauten.parallel.comparison import difference, tolerance
from tauten.parallel.rows import even_sizes, join_rows
from tauten.runtime.modules import PackedEmbedding


@dataclass(frozen=True)
class ChainShape:
    """How a model uses its blocks.

    Attributes:
        blocks: Their names, in the order of the chain.
        returned: How many values they return in a tuple, the state and None; 0 for the state alone.
        first: Embeddings that only what comes before the blocks uses: name, and features.
        last: Modules that only what comes after the blocks uses.
    """

    blocks: tuple[str, ...]
    returned: int
    first: tuple[tuple[str, int], ...]
    last: tuple[str, ...]


class Stage(nn.Module):
    """Some blocks of a model, the first of them called on what other blocks made.

    Args:
        model: Changed in place: its blocks' `forward` is intercepted, embeddings that other
            stages hold are blank. Only tensors of `unused` may be left empty.
        shape: Of its chain.
        begin, end: Numbers of the blocks.
        device: Of the model.
    """

    def __init__(
        self, model: nn.Module, shape: ChainShape, begin: int, end: int, device: str = "cpu"
    ):
        super().__init__()
        self.model, self._shape = model, shape
        self._given: Tensor | None = None  # what the stage before handed on
        self._handed: Tensor | None = None
        self.is_first, self.is_last = begin == 0, end == len(shape.blocks)
        for number, name in enumerate(shape.blocks):
            block: Any = model.get_submodule(name)
            if number < begin:
                block.forward = self._pass
            elif number in (begin, end - 1):
                ends = number == end - 1 and not self.is_last
                block.forward = self._intercepted(block.forward, number == begin, ends)
        if not self.is_first:
            for name, _ in shape.first:
                model.set_submodule(name, _blank(model.get_submodule(name), device))

    @staticmethod
    def unused(shape: ChainShape, begin: int, end: int) -> tuple[str, ...]:
        """Modules whose tensors a stage doesn't need."""
        others = shape.blocks[:begin] + shape.blocks[end:]
        before = () if begin == 0 else tuple(name for name, _ in shape.first)
        return (*others, *before, *(() if end == len(shape.blocks) else shape.last))

    def run(self, given: Tensor | None, args: Any, kwargs: Any) -> Any:
        """What the stage makes of a call: the state it hands on, or, the last, the outputs."""
        self._given = given
        if self.is_last:
            return self.model(*args, **kwargs)
        try:
            self.model(*args, **kwargs)
        except NothingLeft:
            assert self._handed is not None, "its last block has set it"
            return self._handed
        raise AssertionError("the model's forward swallowed an exception of its blocks")

    def _pass(self, *args: Any, **kwargs: Any) -> Any:
        return self._wrapped(state_of(args, kwargs)[1])

    def _intercepted(self, real: Any, is_begin: bool, is_end: bool) -> Any:
        def forward(*args: Any, **kwargs: Any) -> Any:
            if is_begin and self._given is not None:
                args, kwargs = with_state(self._given, args, kwargs)
            made = real(*args, **kwargs)
            if not is_end:
                return made
            self._handed = made[0] if isinstance(made, tuple) else made
            raise NothingLeft

        return forward

    def _wrapped(self, state: Any) -> Any:
        return wrapped(state, self._shape.returned)


def proved_chain(
    model: nn.Module, shape: ChainShape, state: Tensor, inputs: tuple[Any, Any], outputs: Any
) -> ChainShape | None:
    """What of a chain holds, by a call or two in which earlier stages' work is zeros.

    Embeddings may also make an encoder's states, or another tower's: then all stages keep them. A
    model may use states on the way: then its blocks are no chain.

    Args:
        model: Called.
        shape: Of its chain, as it looks.
        state: What the last block was given.
        inputs, outputs: Of the call in which it was.
    """
    for first in dict.fromkeys((shape.first, ())):
        tried = replace(shape, first=first)
        try:
            made = _from_last_block(model, tried, state, inputs)
        except MISFITS:
            continue
        if difference(made, outputs) <= tolerance(model):
            return tried
    return None


def _from_last_block(
    model: nn.Module, shape: ChainShape, state: Tensor, inputs: tuple[Any, Any]
) -> Any:
    """Outputs where embeddings and the first state are zeros, and the last block gets a state."""

    def emptied(_: nn.Module, __: Any, made: Any) -> Any:
        return map_tensors(lambda x: torch.zeros_like(x) if x.is_floating_point() else x, made)

    def nothing(_: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
        return with_state(torch.zeros_like(state_of(args, kwargs)[1]), args, kwargs)

    def given(_: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
        return with_state(state, args, kwargs)

    with contextlib.ExitStack() as hooks, torch.inference_mode():
        for name, _ in shape.first:
            hooks.enter_context(model.get_submodule(name).register_forward_hook(emptied))
        for name, hook in ((shape.blocks[0], nothing), (shape.blocks[-1], given)):
            block = model.get_submodule(name)
            hooks.enter_context(block.register_forward_pre_hook(hook, with_kwargs=True))
        return model(*inputs[0], **inputs[1])


def _blank(table: Any, device: str) -> nn.Module:
    """An embedding of zeros that take no memory; one of a class of its own keeps its forward."""
    packed = isinstance(table, PackedEmbedding)
    like = table.dtype_like if packed else table.weight
    rows = table.packed.shape if packed else table.weight.shape
    zeros = torch.zeros((), dtype=like.dtype, device=device).expand(rows)
    blank: nn.Module = nn.Embedding(1, 1, device="meta") if packed else table
    blank.weight = nn.Parameter(zeros, requires_grad=False)
    return blank


class Pipeline:
    """A stage among others, with one schedule for each form of inputs.

    A schedule fixes the shapes that it sends and receives: used for others it returns outputs of
    the old shape without an error.

    Args:
        stage: Of this worker.
        index, count: Its number, and how many stages there are.
        microbatches: Wanted; a batch is cut into the most up to it that deal out evenly.
        group: Of torch.distributed, of the workers of these stages.
        device: Of this worker.
    """

    def __init__(
        self, stage: Stage, index: int, count: int, microbatches: int, group: Any, device: str
    ):
        self._stage, self._index, self._count = stage, index, count
        self._microbatches, self._group, self._device = microbatches, group, torch.device(device)
        self._schedules: dict[Any, Any] = {}  # `ScheduleGPipe`s
        self._calls: Iterator[tuple[Any, Any]] = iter(())
        self._outputs: list[Any] = []

    def __call__(self, args: Any, kwargs: Any) -> Any:
        """The model's outputs, from the last stage; others return `NotImplemented`."""
        rows = count_rows((args, kwargs))
        count = even_microbatches(rows, self._microbatches)
        calls = cut_rows((args, kwargs), even_sizes(rows, count))
        key = tuple(_form(leaf) for leaf in leaves_of((args, kwargs)))
        if key not in self._schedules:
            self._schedules[key] = self._schedule(calls[0], count)
        self._calls, self._outputs = iter(calls), []
        # The first stage's own inputs wait in `_calls`; torch cuts this stand-in instead.
        self._schedules[key].eval(*([torch.zeros(count, 1)] if self._index == 0 else []))
        if self._index < self._count - 1:
            return NotImplemented
        return join_rows(self._outputs, even_sizes(rows, count))

    def _forward(self, given: Tensor) -> Tensor:
        """One micro-batch; GPipe takes them in order."""
        args, kwargs = next(self._calls)
        made = self._stage.run(None if self._index == 0 else given, args, kwargs)
        if self._index < self._count - 1:
            state: Tensor = made
            return state.contiguous()
        self._outputs.append(made)
        return torch.zeros(1, 1)

    def _schedule(self, call: tuple[Any, Any], count: int) -> Any:
        """A schedule for a form; the stages run one micro-batch to tell each other shapes."""
        given = torch.zeros(1, 1)
        if self._index:
            given = torch.zeros_like(self._told(None), device=self._device)
        self._calls = iter([call])
        made = self._forward(given)
        if self._index < self._count - 1:
            self._told(torch.empty_like(made, device="meta"))
        module = _Module(self)
        options = {"input_args": given, "output_args": made, "group": self._group}
        # Imported late: it takes two seconds, and most workers hold no stage.
        from torch.distributed.pipelining import PipelineStage, ScheduleGPipe

        stage = PipelineStage(module, self._index, self._count, self._device, **options)
        return ScheduleGPipe(stage, n_microbatches=count)

    def _told(self, shape: Tensor | None) -> Any:
        """Send a shape to the next stage, or receive that of the one before."""
        ranks = dist.get_process_group_ranks(self._group)
        told = [shape]
        if shape is not None:
            dist.send_object_list(told, ranks[self._index + 1], self._group)
        else:
            dist.recv_object_list(told, ranks[self._index - 1], self._group)
        return told[0]


class _Module(nn.Module):
    """A pipeline's stage as torch calls it."""

    def __init__(self, pipeline: Pipeline):
        super().__init__()
        self._pipeline = [pipeline]  # in a list: it isn't a submodule

    def forward(self, given: Tensor) -> Tensor:
        return self._pipeline[0]._forward(given)


def even_microbatches(rows: int, wanted: int) -> int:
    """The largest number of equal micro-batches up to what is wanted."""
    return max(n for n in range(1, max(1, min(rows, wanted)) + 1) if rows % n == 0)


def balance(costs: list[float], stages: int) -> tuple[int, ...]:
    """Cut a row of costs into contiguous stages so that the dearest is as cheap as can be.

    Args:
        costs: Of each block, at least as many as stages.
        stages: How many.
    Returns:
        Where each stage ends; the last is `len(costs)`.
    """
    sums = [0.0, *itertools.accumulate(costs)]
    # best[end]: for the blocks before `end`, the cost of the dearest stage, and where stages end.
    best: list[tuple[float, tuple[int, ...]]] = [(sums[end], (end,)) for end in range(len(sums))]
    for stage in range(1, stages):
        best = [
            min(
                (
                    (max(best[cut][0], sums[end] - sums[cut]), (*best[cut][1], end))
                    for cut in range(stage, end)
                ),
                default=(float("inf"), ()),
            )
            for end in range(len(sums))
        ]
    return best[-1][1]


def _form(leaf: Any) -> Any:
    return (tuple(leaf.shape), leaf.dtype) if isinstance(leaf, Tensor) else repr(leaf)
