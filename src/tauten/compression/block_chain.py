"""What a model predicts when its blocks are left out or stand in for each other."""

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tauten.core.errors import InputError, NotApplicableError
from tauten.core.inputs import LayerInputs
from tauten.models.calibration import Calibration, CalibrationBatch
from tauten.models.observer import NothingLeft, Observer
from tauten.models.structure import find_structure, packable_modules
from tauten.solvers.distillation import output_loss

Plan = Sequence[tuple[int, nn.Module]]  # places in the model, and the block that computes there


class BlockChain:
    """A model's blocks, each of which hands one hidden state to the next.

    A change at one block costs only the blocks after it and the head: hidden states are kept.

    Args:
        model: In memory whole; isn't changed.
        batches: Calls of it that are computed.
        technique: Whose name stands in messages.
    Attributes:
        names: Of the blocks.
        blocks: The blocks, in order.
    Raises:
        InputError: There are no batches.
        NotApplicableError: The model has no blocks, or they don't form a chain.
    """

    def __init__(self, model: nn.Module, batches: Sequence[CalibrationBatch], technique: str):
        if not batches:
            raise InputError(f"{technique} measures what each layer is for: pass data=...")
        self.names = find_structure(model).blocks
        if len(self.names) < 2:
            raise NotApplicableError(
                f"{technique}: {type(model).__name__} has no repeated blocks that share no tensors"
            )
        self._batches, self._calibration = batches, Calibration(batches)
        self.blocks = [model.get_submodule(name) for name in self.names]
        self._calibration.start(model, self.names, lambda parts: contextlib.nullcontext(), ())
        if not self._calibration.calls:
            raise NotApplicableError(
                f"{technique}: the blocks of {type(model).__name__} hand more than one hidden "
                "state on, so none can be left out"
            )
        with torch.inference_mode():
            self._targets = [batch.call(model) for batch in batches]

    @property
    def plan(self) -> list[tuple[int, nn.Module]]:
        """The model as it is."""
        return list(enumerate(self.blocks))

    def states(self, plan: Plan) -> list[list[Tensor]]:
        """The hidden states of all batches before each step of a plan, and after the last."""
        found = [list(self._calibration.states)]
        for step in plan:
            found.append(self.run([step], found[-1]))
        return found

    def run(self, plan: Plan, states: Sequence[Tensor]) -> list[Tensor]:
        """Bring the hidden states of all batches through a plan."""
        states = list(states)
        with torch.inference_mode():
            for place, block in plan:
                calls = self._calibration.calls[self.names[place]]
                states = [call.run(block, s) for call, s in zip(calls, states, strict=True)]
        return states

    def observe(self, place: int, states: Sequence[Tensor]) -> dict[str, LayerInputs]:
        """What the layers of a block see, by their names in it.

        Args:
            place: Of the block.
            states: Of all batches, before it.
        Returns:
            Layers that no token reaches are missing, and those that aren't one product.
        """
        block, calls = self.blocks[place], self._calibration.calls[self.names[place]]
        with Observer(dict(packable_modules(block))) as observer, torch.no_grad():
            for call, state, batch in zip(calls, states, self._batches, strict=True):
                with observer.batch(batch.mask), contextlib.suppress(NothingLeft):
                    call.run(block, state)
        return observer.inputs()

    def loss(self, plan: Plan, states: Sequence[Tensor]) -> float:
        """How far predictions move from the model's own if the rest of it is a plan.

        Logits are compared by their exact KL divergence, other outputs by their squared error
        over the energy of the model's own; see `solvers.distillation.output_loss`.

        Args:
            plan: What still computes.
            states: Of all batches, where it begins.
        Returns:
            Mean over the batches.
        """
        losses = []
        last = self.run(plan, states)
        with torch.inference_mode():
            for batch, state, target in zip(self._batches, last, self._targets, strict=True):
                output = self._calibration.finish(batch, state)
                losses.append(float(output_loss(output, target, batch.mask)))
        return sum(losses) / len(losses)


def check_choice(technique: str, knobs: Mapping[str, Any]) -> None:
    """Raise InputError for knobs that say how many blocks to choose, and how, out of range."""
    fraction, count = knobs["fraction"], knobs["count"]
    if not 0 < fraction < 1:
        raise InputError(f"{technique}: fraction={fraction}: expected between 0 and 1")
    if not isinstance(count, int) or count < 0:
        raise InputError(f"{technique}: count={count}: expected 0 or a positive integer")
    for knob in ("candidates", "batches"):
        if not isinstance(knobs[knob], int) or knobs[knob] < 1:
            raise InputError(f"{technique}: {knob}={knobs[knob]}: expected a positive integer")


def chosen_count(technique: str, fraction: float, count: int, blocks: int) -> int:
    """How many blocks to choose.

    Args:
        fraction: Of the blocks, where the count is 0.
        count: Of blocks.
        blocks: How many there are.
    Raises:
        NotApplicableError: The fraction is less than one block.
        InputError: No block would be left alone.
    """
    chosen = count or round(fraction * blocks)
    if not chosen:
        raise NotApplicableError(
            f"{technique}: fraction={fraction} of {blocks} blocks is less than one"
        )
    if chosen >= blocks:
        raise InputError(f"{technique}: {chosen} of {blocks} blocks would leave none; choose fewer")
    return chosen
