"""Blocks of a model that pass a state on, and how the model calls each of them."""

import contextlib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map
from transformers.cache_utils import Cache

from tauten.core.trees import tensors_of
from tauten.models.batch import MISFITS, CalibrationBatch
from tauten.models.block_copies import dense_copy
from tauten.models.dataflow import equal_outputs, without_caches
from tauten.models.observer import NothingLeft
from tauten.models.state import state_kept

Forward = Callable[..., Any]
Filled = Callable[[Sequence[str]], contextlib.AbstractContextManager[None]]


@dataclass(frozen=True)
class BlockCall:
    """How the model calls a block: all but the hidden state, which stands first.

    Attributes:
        args: Positional arguments after the hidden state.
        kwargs: The others; the hidden state is left out.
        keyword: Name that the hidden state is passed by; empty where it is positional.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    keyword: str

    def run(self, block: Forward, state: Tensor) -> Tensor:
        """Call a block on a hidden state."""
        if self.keyword:
            output = block(*self.args, **{self.keyword: state}, **self.kwargs)
        else:
            output = block(state, *self.args, **self.kwargs)
        state = output[0] if isinstance(output, tuple | list) else output
        assert isinstance(state, Tensor), "a chain of blocks passes a tensor on"
        return state

    def cast(self, dtype: torch.dtype) -> "BlockCall":
        """The call with its floating tensors in another dtype."""

        def cast(value: Any) -> Any:
            floating = isinstance(value, Tensor) and value.is_floating_point()
            return value.to(dtype) if floating else value

        args, kwargs = tree_map(cast, (self.args, self.kwargs))
        return BlockCall(args, kwargs, self.keyword)


Traced = tuple[dict[str, BlockCall], Tensor]


class BlockChain:
    """The blocks of a model as links that hand a state from one to the next.

    Args:
        model: Its first block's tensors, and those outside of blocks, are at hand.
        blocks: Names of the blocks in order.
        dtype: That copies of the blocks are to compute in.
    Attributes:
        dtype: After `is_proved`: float32 where a block doesn't compute in the one asked for.
    """

    def __init__(self, model: nn.Module, blocks: Sequence[str], dtype: torch.dtype = torch.float32):
        self._model, self._blocks, self.dtype = model, list(blocks), dtype
        self._returned: int | None = None  # values in a tuple; 0 for no tuple

    def trace(self, batch: CalibrationBatch) -> Traced | None:
        """How a call of the model calls each block, with blocks that pass their input on.

        Returns:
            The calls and the state before the first block; None if blocks don't form a chain, or
            the model takes no such states.
        """
        calls: dict[str, BlockCall] = {}
        states: list[tuple[Tensor, Tensor]] = []  # what each block was given, and handed on

        def recorder(name: str, real: Forward) -> Forward:
            return self._recorder(name, real, calls, states)

        try:
            with self._computing(recorder), state_kept(self._model), suppress(NothingLeft):
                batch.call(self._model)
        except MISFITS:
            return None
        chained = list(calls) == self._blocks and len(states) == len(self._blocks)
        links = itertools.pairwise(states)
        chained = chained and all(given is handed for (_, handed), (given, _) in links)
        return (calls, states[0][0]) if chained else None

    def is_proved(self, batch: CalibrationBatch, filled: Filled) -> bool:
        """Whether blocks that run one after the other, then the rest, do what the model does.

        They don't where blocks hand on several values, or the model uses states on the way. Of a
        model without floating outputs, such as one that returns classes, it can't be told.

        Args:
            batch: Of few examples.
            filled: As for `Calibration.start`; gives each block in its turn.
        """
        traced = self.trace(batch)
        if traced is None:
            return False
        try:
            expected, state = self._both_ways(batch, *traced, filled)
            with self.returning(state), state_kept(self._model):
                made = batch.call(self._model)
            compared = tensors_of(without_caches(expected))
            tells = any(tensor.is_floating_point() for tensor in compared)
            return tells and equal_outputs(expected, made)
        except MISFITS:
            return False

    def _both_ways(
        self, batch: CalibrationBatch, calls: Mapping[str, BlockCall], state: Tensor, filled: Filled
    ) -> tuple[Any, Tensor]:
        """The model's own answer, and the state that its blocks make one after the other."""
        chained = [state]

        def recorder(name: str, real: Forward) -> Forward:
            module = self._model.get_submodule(name)

            def forward(*args: Any, **kwargs: Any) -> Any:
                with filled([name]):
                    with state_kept(module):
                        chained.append(calls[name].run(real, chained[-1]))
                    if not self._computes(module, real, calls[name], chained[-2]):
                        self.dtype = torch.float32
                    return real(*args, **kwargs)

            return forward

        with self._computing(recorder), state_kept(self._model):
            return batch.call(self._model), chained[-1]

    def _computes(self, block: nn.Module, real: Any, call: BlockCall, state: Tensor) -> bool:
        """Whether a copy of a block computes in `dtype`; some operations have no 16 bits."""
        if self.dtype is torch.float32:
            return True
        copied = dense_copy(block).to(self.dtype)
        try:
            call.cast(self.dtype).run(MethodType(real.__func__, copied), state.to(self.dtype))
        except MISFITS:
            return False
        return True

    @contextlib.contextmanager
    def returning(self, state: Tensor) -> Iterator[None]:
        """Make all blocks return a state for a while, whatever they are given."""
        with self._computing(lambda *_: lambda *_, **__: self._wrapped(state)):
            yield

    @contextlib.contextmanager
    def _computing(self, instead: Callable[[str, Forward], Forward]) -> Iterator[None]:
        """Put other forwards into all blocks for a while.

        Args:
            instead: What a block computes, by its name and its forward.
        """
        modules = {name: self._model.get_submodule(name) for name in self._blocks}
        own: dict[str, Any] = {
            name: vars(module).get("forward") for name, module in modules.items()
        }
        for name, module in modules.items():
            module.forward = instead(name, module.forward)
        try:
            yield
        finally:
            for name, module in modules.items():
                del module.forward
                if own[name] is not None:  # a method that its user gave this block alone
                    module.forward = own[name]

    def _recorder(
        self,
        name: str,
        real: Forward,
        calls: dict[str, BlockCall],
        states: list[tuple[Tensor, Tensor]],
    ) -> Forward:
        def forward(*args: Any, **kwargs: Any) -> Any:
            keyword, state = state_of(args, kwargs)
            if self._returned is None:  # the first block: its tensors are at hand
                made = real(*args, **kwargs)
                self._returned = len(made) if isinstance(made, tuple) else 0
            rest = {key: _without_cache(v) for key, v in kwargs.items() if key != keyword}
            others = tuple(_without_cache(value) for value in args[1:])
            calls[name] = BlockCall(others, rest, keyword)
            handed = state.view_as(state)  # a tensor that no other block was given
            states.append((state, handed))
            if name == self._blocks[-1]:
                raise NothingLeft
            return self._wrapped(handed)

        return forward

    def _wrapped(self, state: Tensor) -> Any:
        """A state as blocks return it."""
        return wrapped(state, self._returned or 0)


def state_of(args: Any, kwargs: Any) -> tuple[str, Any]:
    """The hidden state among a block's arguments, and the name that it is passed by.

    It is the first positional argument, with an empty name; without any, the first tensor.
    """
    if args:
        return "", args[0]
    return next((key, value) for key, value in kwargs.items() if isinstance(value, Tensor))


def with_state(state: Tensor, args: Any, kwargs: Any) -> tuple[Any, Any]:
    """A block's arguments with another hidden state."""
    keyword, _ = state_of(args, kwargs)
    return (args, {**kwargs, keyword: state}) if keyword else ((state, *args[1:]), kwargs)


def wrapped(state: Any, returned: int) -> Any:
    """A state as blocks return it: alone for 0, else the first of a tuple, with None behind it."""
    return (state, *[None] * (returned - 1)) if returned else state


def _without_cache(value: Any) -> Any:
    """None for a cache: a block is run many times on the same tokens."""
    return None if isinstance(value, Cache) else value
