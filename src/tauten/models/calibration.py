"""Calibration batches on their way through a model, one block at a time.

Hidden states wait between blocks. For each block its original weights first run on them, so that
its layers' inputs are observed; then, packed, it makes the states that the next block sees. So
every block is fitted to the inputs that it will get. A model without a chain of blocks is
observed in one pass.
"""

import contextlib
import functools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from tauten.core.errors import InputError
from tauten.core.inputs import BlockExamples, LayerInputs
from tauten.models.batch import CalibrationBatch as CalibrationBatch  # also found here
from tauten.models.batch import called_with, first_tokens
from tauten.models.block_copies import dense_copy, tunable_copy
from tauten.models.chain import BlockCall, BlockChain, Traced
from tauten.models.chain import Filled as Filled  # also found here
from tauten.models.experts import has_experts, routed_layers, show_starved, starved_note
from tauten.models.input_sums import SHARDS, ShardSums, shard_of
from tauten.models.observer import NothingLeft, Observer
from tauten.models.state import state_kept

HELD_OUT = 16  # one batch of so many
PROVED_ROWS = 2  # examples that are run to see whether blocks form a chain


class Calibration:
    """The batches of one walk over a model.

    Args:
        batches: At least one.
        correct: Also gather `LayerInputs.shift`.
        counted: Also gather `LayerInputs.magnitudes`.
        fits_blocks: Also give `examples`, a few of them held out: layers aren't observed on those.
        dtype: What blocks compute in, if they can, else float32; by default bfloat16 where the
            machine multiplies it.
        place: Number of the first batch among those of all machines, and how many those are.
    Attributes:
        states: One hidden state a batch, where the packed blocks have brought it.
        originals: The same in the original model; empty unless `correct` or `fits_blocks`.
        whole: Sums of what all layers see; None where blocks form a chain.
    """

    def __init__(
        self,
        batches: Sequence[CalibrationBatch],
        correct: bool = False,
        dtype: torch.dtype | None = None,
        counted: bool = False,
        fits_blocks: bool = False,
        place: tuple[int, int] | None = None,
    ):
        if not batches:
            raise InputError("calibration needs at least one batch of data")
        self.batches, self.correct, self.counted = batches, correct, counted
        self._carries_originals = correct or fits_blocks
        self._held_out = -(-len(batches) // HELD_OUT) if fits_blocks and len(batches) > 1 else 0
        self._first, self._total = place or (0, len(batches))
        self.dtype = dtype or fast_dtype()
        self.states: list[Tensor] = []
        self._remembered: nn.Module | None = None
        self.originals: list[Tensor] = []
        self._moves_on = False  # observing a block also makes the states that come next
        self._onward: list[Tensor] = []  # those
        self.calls: dict[str, list[BlockCall]] = {}
        self._probe: Traced | None = None
        self._blocks: list[str] = []
        self.whole: ShardSums | None = None

    def run(self, model: nn.Module) -> Any:
        """What a model answers to the first batch."""
        batch = self.batches[0]
        with torch.no_grad(), state_kept(model):
            return batch.call(model)

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
        self._chain = BlockChain(model, blocks, self.dtype)
        chained: list[Traced] = []
        if blocks:
            with filled(["", blocks[0]]), torch.no_grad():
                chained = self._traced()
        if not chained:
            self.whole = self._gather_whole(["", *blocks], names)
            return
        self._blocks = list(blocks)
        self.calls = {block: [calls[block] for calls, _ in chained] for block in blocks}
        self.states = [state for _, state in chained]
        self.originals = list(self.states) if self._carries_originals else []

    def _traced(self) -> list[Traced]:
        """How each batch calls the blocks; none where these form no chain."""
        first = first_tokens(self.batches[0])
        if not self._chain.is_proved(first.split(PROVED_ROWS)[0], self._filled):
            return []
        self.dtype = self._chain.dtype
        self._probe = self._chain.trace(first)
        found = [self._chain.trace(batch) for batch in self.batches]
        chained = [traced for traced in found if traced is not None]
        return chained if len(chained) == len(found) else []

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
        found = self.gather(part, names).inputs()
        if not part or not has_experts(self._model.get_submodule(part)):
            return found
        shown = self.gather_starved(part, {name: seen.tokens for name, seen in found.items()})
        return found | {
            name: replace(inputs, note=starved_note(found.get(name), inputs))
            for name, inputs in shown.inputs().items()
        }

    @functools.cached_property
    def _seen(self) -> dict[str, LayerInputs]:
        """What all layers see, where blocks form no chain."""
        return {} if self.whole is None else self.whole.inputs()

    def gather(self, part: str, names: Sequence[str]) -> ShardSums:
        """Sums of what the layers of a part see; arguments as for `observe`, blocks in a chain."""
        if not part:
            return self._gather_whole([""], names)
        if not names and not self.originals and not self._moves_on:
            return ShardSums()
        with self._filled([part]), torch.no_grad():
            block = self.dense(part)
            inner = {name: block.get_submodule(name[len(part) + 1 :]) for name in names}
            routed = routed_layers(block, part)
            self._onward = []
            with self._observer(inner, self.correct, routed, not self._moves_on) as observer:
                for index in range(len(self.batches)):
                    observer.shard(self._shard_of(index))
                    self._observe_batch(part, block, index, observer)
            return observer.sums()

    def gather_starved(self, part: str, tokens: Mapping[str, int]) -> ShardSums:
        """Sums of what experts that too few tokens reached would see of all tokens.

        Args:
            part: A block.
            tokens: How many its layers saw.
        """
        with self._filled([part]), torch.no_grad():
            block = self.dense(part)
            starved = show_starved(block, part, tokens)
            with self._observer(starved) as observer:
                for index, call in enumerate(self.calls[part] if starved else ()):
                    observer.shard(self._shard_of(index))
                    with observer.batch(self.batches[index].mask), contextlib.suppress(NothingLeft):
                        self._step(call, block, self.states[index])
            return observer.sums()

    def _observer(
        self,
        layers: Mapping[str, nn.Module],
        shifted: bool = False,
        unpaired: Collection[str] = (),
        stops: bool = True,
    ) -> Observer:
        shards = min(SHARDS, self._total)
        return Observer(layers, shifted, self.counted, shards, unpaired, stops)

    def _shard_of(self, index: int) -> int:
        return shard_of(self._first + index, self._total)

    def _observe_batch(self, part: str, block: nn.Module, index: int, observer: Observer) -> None:
        call, mask = self.calls[part][index], self.batches[index].mask
        held_out = index >= len(self.batches) - self._held_out
        if self.originals:
            compared = self.correct and not held_out
            with observer.original(mask) if compared else contextlib.nullcontext():
                self.originals[index] = self._step(call, block, self.originals[index])
        if self._moves_on:  # the block's own output is what comes next: one pass does both
            with observer.batch(mask):
                self._onward.append(self._step(call, block, self.states[index]))
        elif observer.layers and not held_out:
            with observer.batch(mask), contextlib.suppress(NothingLeft):
                self._step(call, block, self.states[index])

    def remember(self, part: str) -> None:
        """Keep a block as it is now, so that `advance` takes that, whatever becomes of it."""
        if part in self._blocks:
            with self._filled([part]):
                self._remembered = self.dense(part)

    def advance(self, part: str) -> None:
        """Bring the states through a block as it is now, packed, or as it is remembered."""
        if part not in self._blocks:  # also where blocks aren't run one by one
            return
        with self._filled([part]), torch.no_grad():
            block = self._remembered or self.dense(part)
            self._remembered = None
            for index, call in enumerate(self.calls[part]):
                self.states[index] = self._step(call, block, self.states[index])

    def examples(self, part: str) -> BlockExamples | None:
        """What a block is to learn from, once it was observed; None if it is no link of a chain."""
        if part not in self._blocks or not self.originals:
            return None
        calls, faster = self.calls[part], self.dtype is not torch.float32

        def run(block: nn.Module, index: int) -> Tensor:
            with torch.autocast("cpu", self.dtype, enabled=faster):
                return calls[index].cast(torch.float32).run(block, self.states[index].float())

        masks = [batch.mask for batch in self.batches]
        return BlockExamples(run, self.originals, masks, self._held_out)

    def try_block(self, part: str, block: nn.Module) -> Tensor:
        """What a float32 version of a block makes of a few tokens, as they come to the first."""
        assert self._probe is not None, "blocks form a chain"
        calls, state = self._probe
        return calls[part].cast(torch.float32).run(block, state.float())

    def dense(self, part: str, dtype: torch.dtype | None = None) -> nn.Module:
        """A copy of a block that computes in a dtype, by default its own; packed weights dense."""
        return dense_copy(self._model.get_submodule(part)).to(dtype or self.dtype)

    def tunable(self, part: str) -> nn.Module:
        """A float32 copy of a packed block that has the packed weights in common with it."""
        return tunable_copy(self._model.get_submodule(part))

    def _step(self, call: BlockCall, block: nn.Module, state: Tensor) -> Tensor:
        with state_kept(block):
            return call.cast(self.dtype).run(block, state.to(self.dtype))

    def _gather_whole(self, parts: Sequence[str], names: Sequence[str]) -> ShardSums:
        """Run the whole model; blocks that the states have passed hand them on."""
        observer = self._observer({name: self._model.get_submodule(name) for name in names})
        if not observer.layers:
            return ShardSums()
        with self._filled(parts), observer, torch.no_grad():
            for index, batch in enumerate(self.batches):
                observer.shard(self._shard_of(index))
                with contextlib.ExitStack() as calling:
                    calling.enter_context(called_with(index + 1))
                    calling.enter_context(state_kept(self._model))
                    calling.enter_context(observer.batch(batch.mask))
                    if self.states:
                        calling.enter_context(self._chain.returning(self.states[index].float()))
                    calling.enter_context(contextlib.suppress(NothingLeft))
                    batch.call(self._model)
        return observer.sums()

    def finish(self, batch: CalibrationBatch, state: Tensor) -> Any:
        """What the model answers to a batch whose last block has made a state.

        With gradients if the state asks for them.
        """
        gradients = state.requires_grad
        with self._filled([""]), self._chain.returning(state), torch.set_grad_enabled(gradients):
            return batch.call(self._model)


def fast_dtype() -> torch.dtype:
    """bfloat16 where products of it are faster than float32, by instructions for it."""
    fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if fast else torch.float32
