"""Calibration batches on their way through a model, one block at a time.

Hidden states wait between blocks. For each block its original weights first run on them, so that
its layers' inputs are observed; then, packed, it makes the states that the next block sees. So
every block is fitted to the inputs that it will get. A model without a chain of blocks is
observed in one pass.
"""

import contextlib
import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from tauten.core.errors import InputError
from tauten.core.inputs import BlockExamples, LayerInputs
from tauten.formats.packed import PackedWeight
from tauten.models.chain import BlockCall, BlockChain
from tauten.models.experts import show_starved, starved_note
from tauten.models.observer import NothingLeft, Observer
from tauten.runtime.modules import PackedLinear

PROBE_TOKENS = 32
HELD_OUT = 16  # one batch of so many
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


class Calibration:
    """The batches of one walk over a model.

    Args:
        batches: At least one.
        correct: Also gather `LayerInputs.shift`.
        counted: Also gather `LayerInputs.magnitudes`.
        fits_blocks: Also give `examples`, a few of them held out: layers aren't observed on those.
        dtype: What blocks compute in; by default bfloat16 where the machine multiplies it.
    Attributes:
        states: One hidden state a batch, where the packed blocks have brought it.
        originals: The same in the original model; empty unless `correct` or `fits_blocks`.
    """

    def __init__(
        self,
        batches: Sequence[CalibrationBatch],
        correct: bool = False,
        dtype: torch.dtype | None = None,
        counted: bool = False,
        fits_blocks: bool = False,
    ):
        if not batches:
            raise InputError("calibration needs at least one batch of data")
        self.batches, self.correct, self._counted = batches, correct, counted
        self._carries_originals = correct or fits_blocks
        self._held_out = -(-len(batches) // HELD_OUT) if fits_blocks and len(batches) > 1 else 0
        self.dtype = dtype or fast_dtype()
        self.states: list[Tensor] = []
        self._remembered: nn.Module | None = None
        self.originals: list[Tensor] = []
        self.calls: dict[str, list[BlockCall]] = {}
        self._probe: tuple[dict[str, BlockCall], Tensor] | None = None
        self._blocks: list[str] = []
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
        self._chain = BlockChain(model, blocks)
        recorded = []
        if blocks:
            with filled(["", blocks[0]]), torch.no_grad():
                recorded = [self._chain.trace(b.args, b.kwargs) for b in self.batches]
                first = _first_tokens(self.batches[0])
                self._probe = self._chain.trace(first.args, first.kwargs)
        chained = [found for found in recorded if found is not None]
        if not blocks or len(chained) < len(recorded):
            self._seen = self._observe_whole(["", *blocks], names)
            return
        self._blocks = list(blocks)
        self.calls = {block: [calls[block] for calls, _ in chained] for block in blocks}
        self.states = [state for _, state in chained]
        self.originals = list(self.states) if self._carries_originals else []

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
        if not names and not self.originals:
            return {}
        with self._filled([part]), torch.no_grad():
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
        held_out = index >= len(self.batches) - self._held_out
        if self.originals:
            compared = self.correct and not held_out
            with observer.original(mask) if compared else contextlib.nullcontext():
                self.originals[index] = self._step(call, block, self.originals[index])
        if observer.layers and not held_out:
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
        block = copy.deepcopy(self._model.get_submodule(part))
        for parent in list(block.modules()):
            for leaf, child in list(parent.named_children()):
                if isinstance(child, PackedLinear):
                    setattr(parent, leaf, _written_out(child))
        return block.to(dtype or self.dtype)

    def tunable(self, part: str) -> nn.Module:
        """A float32 copy of a packed block that has the packed weights in common with it."""
        block = self._model.get_submodule(part)
        shared: dict[int, Any] = {id(m): m for m in block.modules() if isinstance(m, PackedWeight)}
        block = copy.deepcopy(block, shared)
        for module in block.modules():
            if not isinstance(module, PackedWeight):
                for key, tensor in module._parameters.items():
                    if tensor is not None and tensor.is_floating_point():
                        copied = nn.Parameter(tensor.detach().float(), requires_grad=False)
                        module._parameters[key] = copied
                for key, buffer in module._buffers.items():
                    if buffer is not None and buffer.is_floating_point():
                        module._buffers[key] = buffer.float()
        return block

    def _step(self, call: BlockCall, block: nn.Module, state: Tensor) -> Tensor:
        return call.cast(self.dtype).run(block, state.to(self.dtype))

    def _observe_whole(self, parts: Sequence[str], names: Sequence[str]) -> dict[str, LayerInputs]:
        """Run the whole model; blocks that the states have passed hand them on."""
        layers = {name: self._model.get_submodule(name) for name in names}
        observer = Observer(layers, counted=self._counted)
        if not observer.layers:
            return {}
        with self._filled(parts), observer, torch.no_grad():
            for index, batch in enumerate(self.batches):
                passed: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
                if self.states:
                    passed = self._chain.returning(self.states[index].float())
                with observer.batch(batch.mask), passed, contextlib.suppress(NothingLeft):
                    self._model(*batch.args, **batch.kwargs)
        return observer.inputs()

    def finish(self, batch: CalibrationBatch, state: Tensor) -> Any:
        """What the model answers to a batch whose last block has made a state.

        With gradients if the state asks for them.
        """
        gradients = state.requires_grad
        with self._filled([""]), self._chain.returning(state), torch.set_grad_enabled(gradients):
            return self._model(*batch.args, **batch.kwargs)


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


def fast_dtype() -> torch.dtype:
    """bfloat16 where products of it are faster than float32, by instructions for it."""
    fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if fast else torch.float32
