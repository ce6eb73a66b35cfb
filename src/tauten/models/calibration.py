"""Calibration batches on their way through a model, one block at a time.

Hidden states wait between blocks. For each block its original weights first run on them, so that
its layers' inputs are observed; then, packed, it makes the states that the next block sees. So
every block is fitted to the inputs that it will get. A model without a chain of blocks is
observed in one pass.
"""

import contextlib
import copy
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map
from transformers.cache_utils import Cache

from tauten.core.errors import InputError
from tauten.core.inputs import LayerInputs
from tauten.models.experts import show_starved, starved_note
from tauten.models.observer import NothingLeft, Observer
from tauten.runtime.modules import PackedLinear

PROBE_TOKENS = 32
Filled = Callable[[Sequence[str]], contextlib.AbstractContextManager[None]]


@dataclass(frozen=True)
class CalibrationBatch:
    """One call of the model.

    Attributes:
        args: Positional arguments.
        kwargs: The others.
        mask: (rows, length) bool, False where a token is padding; None where all count.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    mask: Tensor | None = None

    @property
    def rows(self) -> int:
        """Examples in the batch: the first size of its first tensor."""
        return next(len(x) for x in tree_leaves(vars(self)) if isinstance(x, Tensor))

    def split(self, rows: int) -> "list[CalibrationBatch]":
        """The same examples in batches of at most `rows`."""
        count = self.rows

        def part(value: Any, start: int) -> Any:
            whole = isinstance(value, Tensor) and value.dim() and len(value) == count
            return value[start : start + rows] if whole else value

        starts = range(0, count, rows)
        parts = (tree_map(lambda v, s=start: part(v, s), vars(self)) for start in starts)
        return [CalibrationBatch(**fields) for fields in parts]


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

    def run(self, block: nn.Module, state: Tensor) -> Tensor:
        """Call a block on a hidden state."""
        if self.keyword:
            output = block(*self.args, **{self.keyword: state}, **self.kwargs)
        else:
            output = block(state, *self.args, **self.kwargs)
        return _main(output)


class Calibration:
    """The batches of one walk over a model.

    Args:
        batches: At least one.
        correct: Also carry the states of the original model, for `LayerInputs.shift` and for
            techniques that fit a block's output to the original's.
        counted: Also gather `LayerInputs.magnitudes`.
        dtype: What blocks compute in; by default bfloat16 where the machine multiplies it.
    Attributes:
        states: One hidden state a batch, where the packed blocks have brought it.
        originals: The same in the original model; empty unless `correct`.
    """

    def __init__(
        self,
        batches: Sequence[CalibrationBatch],
        correct: bool = False,
        dtype: torch.dtype | None = None,
        counted: bool = False,
    ):
        if not batches:
            raise InputError("calibration needs at least one batch of data")
        self.batches, self.correct, self._counted = batches, correct, counted
        self.dtype = dtype or fast_dtype()
        self.states: list[Tensor] = []
        self.originals: list[Tensor] = []
        self.calls: dict[str, list[BlockCall]] = {}
        self._probe: tuple[dict[str, BlockCall], Tensor] | None = None
        self._blocks: list[str] = []
        self._returns_tuple: bool | None = None
        self._seen: dict[str, LayerInputs] = {}

    def run(self, model: nn.Module) -> Any:
        """What a model answers to the first batch."""
        batch = self.batches[0]
        with torch.inference_mode():
            return model(*batch.args, **batch.kwargs)

    def start(
        self, model: nn.Module, blocks: Sequence[str], filled: Filled, names: Sequence[str]
    ) -> None:
        """Bring the batches to the first block.

        Args:
            model: With empty tensors where `filled` fills them.
            blocks: Names of the blocks in order.
            filled: Gives a context in which the tensors of some parts are at hand.
            names: Of all layers; observed right away where blocks don't form a chain.
        """
        self._model, self._filled = model, filled
        self._blocks = list(blocks)
        recorded = []
        if blocks:
            with filled(["", blocks[0]]), torch.inference_mode():
                recorded = [self._trace(batch) for batch in self.batches]
                self._probe = self._trace(_first_tokens(self.batches[0]))
        chained = [found for found in recorded if found is not None]
        if not blocks or len(chained) < len(recorded):
            self._blocks = []
            self._seen = self._observe_whole(["", *blocks], names)
            return
        self.calls = {block: [calls[block] for calls, _ in chained] for block in blocks}
        self.states = [state for _, state in chained]
        self.originals = list(self.states) if self.correct else []

    def observe(self, part: str, names: Sequence[str]) -> dict[str, LayerInputs]:
        """What the layers of a part see, computed with its original weights.

        Args:
            part: A block, or '' for what lies outside of the blocks, after all blocks are done.
            names: Of the part's layers.
        Returns:
            Inputs by name; convolutions with groups and embeddings have none.
        """
        if not self._blocks:
            return {name: self._seen[name] for name in names if name in self._seen}
        if not part:
            return self._observe_whole([""], names)
        if not names and not self.correct:
            return {}
        with self._filled([part]), torch.inference_mode():
            block = self.dense(part)
            inner = {name: block.get_submodule(name[len(part) + 1 :]) for name in names}
            with Observer(inner, self.correct, self._counted) as observer:
                for index in range(len(self.batches)):
                    self._observe_batch(part, block, index, observer)
            found = observer.inputs()
            return found | self._observe_starved(part, block, found)

    def _observe_starved(
        self, part: str, block: nn.Module, found: dict[str, LayerInputs]
    ) -> dict[str, LayerInputs]:
        """What experts that too few tokens reached would see of all tokens."""
        starved = show_starved(block, part, found)
        if not starved:
            return {}
        with Observer(starved) as observer:
            for call, state, batch in zip(self.calls[part], self.states, self.batches, strict=True):
                with observer.batch(batch.mask), contextlib.suppress(NothingLeft):
                    self._step(call, block, state)
        return {
            name: replace(inputs, note=starved_note(found.get(name), inputs))
            for name, inputs in observer.inputs().items()
        }

    def _observe_batch(self, part: str, block: nn.Module, index: int, observer: Observer) -> None:
        call, mask = self.calls[part][index], self.batches[index].mask
        if self.correct:
            with observer.original(mask):
                self.originals[index] = self._step(call, block, self.originals[index])
        with observer.batch(mask), contextlib.suppress(NothingLeft):
            self._step(call, block, self.states[index])

    def advance(self, part: str) -> None:
        """Bring the states through a block as it is now, packed."""
        if part not in self._blocks:  # also where blocks aren't run one by one
            return
        with self._filled([part]), torch.inference_mode():
            block = self.dense(part)
            for index, call in enumerate(self.calls[part]):
                self.states[index] = self._step(call, block, self.states[index])

    def try_block(self, part: str, block: nn.Module) -> Tensor:
        """What a float32 version of a block makes of a few tokens, as they come to the first."""
        assert self._probe is not None, "blocks form a chain"
        calls, state = self._probe
        return _cast_call(calls[part], torch.float32).run(block, state.float())

    def dense(self, part: str, dtype: torch.dtype | None = None) -> nn.Module:
        """A copy of a block that computes in a dtype, by default its own; packed weights dense."""
        block = copy.deepcopy(self._model.get_submodule(part))
        for parent in list(block.modules()):
            for leaf, child in list(parent.named_children()):
                if isinstance(child, PackedLinear):
                    setattr(parent, leaf, _written_out(child))
        return block.to(dtype or self.dtype)

    def _step(self, call: BlockCall, block: nn.Module, state: Tensor) -> Tensor:
        return _cast_call(call, self.dtype).run(block, state.to(self.dtype))

    def _observe_whole(self, parts: Sequence[str], names: Sequence[str]) -> dict[str, LayerInputs]:
        """Run the whole model; blocks that the states have passed hand them on."""
        layers = {name: self._model.get_submodule(name) for name in names}
        observer = Observer(layers, counted=self._counted)
        if not observer.layers:
            return {}
        with self._filled(parts), observer, torch.inference_mode():
            for index, batch in enumerate(self.batches):
                passed: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
                if self._blocks:
                    passed = self._passed(self.states[index].float())
                with observer.batch(batch.mask), passed, contextlib.suppress(NothingLeft):
                    self._model(*batch.args, **batch.kwargs)
        return observer.inputs()

    def finish(self, batch: CalibrationBatch, state: Tensor) -> Any:
        """What the model answers to a batch whose last block has made a state."""
        with self._filled([""]), self._passed(state), torch.inference_mode():
            return self._model(*batch.args, **batch.kwargs)

    @contextlib.contextmanager
    def _passed(self, state: Tensor) -> Iterator[None]:
        """Make blocks return a state, whatever they are given."""
        modules = [self._model.get_submodule(name) for name in self._blocks]
        for module in modules:
            module.forward = lambda *_, **__: self._wrapped(state)
        try:
            yield
        finally:
            for module in modules:
                del module.forward

    def _trace(self, batch: CalibrationBatch) -> tuple[dict[str, BlockCall], Tensor] | None:
        """How a batch calls each block, with blocks that pass their input on.

        Returns:
            The calls and the state before the first block; None if blocks don't form a chain.
        """
        calls: dict[str, BlockCall] = {}
        states: list[tuple[Tensor, Tensor]] = []  # what each block was given, and handed on
        modules = {name: self._model.get_submodule(name) for name in self._blocks}
        for name, module in modules.items():
            module.forward = self._recorder(name, module, calls, states)
        try:
            with contextlib.suppress(NothingLeft):
                self._model(*batch.args, **batch.kwargs)
        finally:
            for module in modules.values():
                del module.forward
        chained = list(calls) == self._blocks and len(states) == len(self._blocks)
        links = itertools.pairwise(states)
        chained = chained and all(given is handed for (_, handed), (given, _) in links)
        return (calls, states[0][0]) if chained else None

    def _recorder(
        self,
        name: str,
        module: nn.Module,
        calls: dict[str, BlockCall],
        states: list[tuple[Tensor, Tensor]],
    ) -> Callable[..., Any]:
        real = type(module).forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            keyword = "" if args else next(k for k, v in kwargs.items() if isinstance(v, Tensor))
            state = args[0] if args else kwargs[keyword]
            if self._returns_tuple is None:  # the first block: its tensors are at hand
                self._returns_tuple = isinstance(real(module, *args, **kwargs), tuple)
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
        return (state,) if self._returns_tuple else state


def _first_tokens(batch: CalibrationBatch) -> CalibrationBatch:
    """The beginning of a batch of tokens; any other batch, or one padded there, as it is."""
    tensors = [v for v in (*batch.args, *batch.kwargs.values()) if isinstance(v, Tensor)]
    padded = batch.mask is not None and not bool(batch.mask[:1, :PROBE_TOKENS].all())
    if padded or any(t.dim() != 2 or t.is_floating_point() for t in tensors):
        return batch

    def cut(value: Any) -> Any:
        return value[:1, :PROBE_TOKENS] if isinstance(value, Tensor) else value

    kwargs = {key: cut(value) for key, value in batch.kwargs.items()}
    return CalibrationBatch(tuple(map(cut, batch.args)), kwargs)


def _written_out(layer: PackedLinear) -> nn.Linear:
    dense = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None)
    dense.weight = nn.Parameter(layer.weight, requires_grad=False)
    if layer.bias is not None:
        dense.bias = layer.bias
    return dense


def _without_cache(value: Any) -> Any:
    """None for a cache: a block is run many times on the same tokens."""
    return None if isinstance(value, Cache) else value


def _main(output: Any) -> Tensor:
    state = output[0] if isinstance(output, tuple | list) else output
    assert isinstance(state, Tensor), "a chain of blocks passes a tensor on"
    return state


def _cast_call(call: BlockCall, dtype: torch.dtype) -> BlockCall:
    """The call with its floating tensors in another dtype."""

    def cast(value: Any) -> Any:
        return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value

    args, kwargs = tree_map(cast, (call.args, call.kwargs))
    return BlockCall(args, kwargs, call.keyword)


def fast_dtype() -> torch.dtype:
    """bfloat16 where products of it are faster than float32, by instructions for it."""
    fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if fast else torch.float32
