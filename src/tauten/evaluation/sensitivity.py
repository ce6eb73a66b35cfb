"""How much a model's predictions mind errors in the outputs of each layer: one pass with gradients.

For an error e in the outputs of a layer, the KL of the predictions grows by about half of the mean
of (g e)^2, with g the gradients of the log-probabilities of outcomes that the model itself draws:
their second moment is the Fisher information. Here rows count as independent of each other and of
the inputs.

Source: the Fisher information as the second derivative of KL (Amari 1998), its factors by inputs
and outputs of a layer as in K-FAC (Martens and Grosse 2015, arXiv:1503.05671, eq. 1), of which the
factor by outputs is cut down to its diagonal.
"""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import nll_loss
from torch.utils._pytree import tree_leaves

from tauten.core.inputs import LayerInputs
from tauten.core.progress import track
from tauten.data.tensors import main_output
from tauten.evaluation.own_loss import own_loss
from tauten.models.calibration import Calibration, CalibrationBatch, Filled
from tauten.models.observer import is_observed

MOST_TOKENS = 1024  # of text, and examples of other data: more change the ranks of layers little
MOST_EXAMPLES = 128
SEED = 0  # of the outcomes that are drawn


@dataclass(frozen=True)
class Sensitivity:
    """Of one layer.

    Attributes:
        inputs: What it sees in the original model.
        fisher: (out,) float32, squared gradients of each row of outputs, summed over them,
            for each answer of the model.
    """

    inputs: LayerInputs
    fisher: Tensor


def sensitivities(
    model: nn.Module,
    blocks: Sequence[str],
    filled: Filled,
    names_of: Mapping[str, Sequence[str]],
    batches: Sequence[CalibrationBatch],
) -> Iterator[dict[str, Sensitivity]]:
    """Find how much layers matter, the last block first, one block in memory at a time.

    Args:
        model: With empty tensors where `filled` fills them; isn't changed.
        blocks: Names of its blocks in order.
        filled: As for `Calibration.start`.
        names_of: Layers by the block they lie in, '' for those outside of blocks.
        batches: Calls of the model; the first few examples are used.
    Yields:
        Sensitivities by layer, a part of the model at a time. Missing are those whose inputs
        aren't observed, that no token reached, and, where blocks form a chain, what stands before
        the first block.
    Cost: about five forward passes; between blocks each one's input is kept.
    """
    calibration = Calibration(_first_examples(batches))
    names = [name for own in names_of.values() for name in own]
    outcomes = _Outcomes()
    calibration.start(model, blocks, filled, names)
    if not calibration.states:
        with filled(["", *blocks]):
            inputs = calibration.observe("", names)
            squares = _of_whole(model, names, calibration.batches, outcomes)
            yield _joined(inputs, squares, outcomes)
        return
    states = {}
    for part in track(blocks, "running blocks", len(blocks)):
        states[part] = calibration.states
        calibration.states = list(calibration.states)
        calibration.advance(part)
    own = names_of.get("", ())
    inputs = calibration.observe("", own)
    with filled([""]), _Gradients(_layers(model, own)) as gradients:
        slopes = _of_ending(calibration, gradients, outcomes)
    yield _joined(inputs, gradients.squares, outcomes)
    for part in track(blocks[::-1], "running blocks backwards", len(blocks)):
        calibration.states = states.pop(part)
        own = names_of.get(part, ())
        inputs = calibration.observe(part, own)
        with filled([part]):
            block = calibration.dense(part).requires_grad_(False)
        inner = {name: block.get_submodule(name.removeprefix(f"{part}.")) for name in own}
        with _Gradients(inner) as gradients:
            slopes = _of_block(calibration, part, block, gradients, slopes)
        yield _joined(inputs, gradients.squares, outcomes)


class _Outcomes:
    """Draws them, and counts how many were drawn."""

    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(SEED)
        self.count = 0


class _Gradients:
    """Sums the squared gradients of layers' outputs, by row."""

    def __init__(self, layers: Mapping[str, nn.Module]):
        self._layers = {name: layer for name, layer in layers.items() if is_observed(layer)}
        self._zero = torch.zeros(
            (), requires_grad=True, dtype=torch.float32
        )  # makes any output ask for a gradient
        self._handles: list[Any] = []
        self.squares: dict[str, Tensor] = {}

    def __enter__(self) -> "_Gradients":
        self._handles = [
            layer.register_forward_hook(self._hook(name)) for name, layer in self._layers.items()
        ]
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def slope(self, run: Callable[[Tensor], Tensor], state: Tensor, slope: Tensor | None) -> Tensor:
        """The gradient of a state, from that of what `run` makes of it; None for a scalar's."""
        leaf = state.detach().clone().requires_grad_()
        with torch.enable_grad():
            output = run(leaf)
            known = None if slope is None else slope.to(output.dtype)
            found: Tensor = torch.autograd.grad(
                output, [leaf, self._zero], known, allow_unused=True
            )[0]
        return found

    def backward(self, output: Tensor) -> None:
        """Go back from a scalar to where its model begins."""
        torch.autograd.grad(output, self._zero)

    def _hook(self, name: str) -> Callable[..., Tensor]:
        axis = 1 if isinstance(self._layers[name], nn.Conv1d | nn.Conv2d) else -1

        def add(gradient: Tensor) -> None:
            rows = gradient.detach().float().movedim(axis, -1).flatten(0, -2)
            square = rows.square().sum(0)
            self.squares[name] = self.squares.get(name, 0.0) + square

        def hook(_: nn.Module, __: Any, output: Tensor) -> Tensor:
            if not torch.is_grad_enabled():
                return output
            output = output + self._zero.to(output.dtype)
            output.register_hook(add)
            return output

        return hook


def _of_ending(
    calibration: Calibration, gradients: _Gradients, outcomes: _Outcomes
) -> list[Tensor]:
    """Gradients of what the last block has made, by batch."""
    slopes = []
    for batch, state in zip(calibration.batches, calibration.states, strict=True):

        def ending(leaf: Tensor, batch: CalibrationBatch = batch) -> Tensor:
            return _surprise(calibration.finish(batch, leaf), batch, outcomes)

        slopes.append(gradients.slope(ending, state.float(), None))
    return slopes


def _of_block(
    calibration: Calibration,
    part: str,
    block: nn.Module,
    gradients: _Gradients,
    slopes: Sequence[Tensor],
) -> list[Tensor]:
    """Gradients of what a block was given, from those of what it made."""
    found, dtype = [], calibration.dtype
    for call, state, slope in zip(calibration.calls[part], calibration.states, slopes, strict=True):
        run = functools.partial(call.cast(dtype).run, block)
        found.append(gradients.slope(run, state.to(dtype), slope))
    return found


def _of_whole(
    model: nn.Module,
    names: Sequence[str],
    batches: Sequence[CalibrationBatch],
    outcomes: _Outcomes,
) -> dict[str, Tensor]:
    with _Gradients(_layers(model, names)) as gradients, torch.enable_grad():
        for batch in batches:
            output = batch.call(model)
            gradients.backward(_surprise(output, batch, outcomes))
    return gradients.squares


def _surprise(output: Any, batch: CalibrationBatch, outcomes: _Outcomes) -> Tensor:
    """Minus the log-probability of outcomes drawn from the model's own predictions, summed.

    Logits predict classes, those of a map stand second. A loss that a model returns is that of
    outcomes that it was given. What else a model makes, or one class,
    counts as the mean of a normal distribution as wide as it varies itself.
    """
    found = main_output(output).float()
    logits = hasattr(output, "logits") or isinstance(output, Tensor | tuple | list)
    if found.dim() == 0 and (loss := own_loss(output)) is not None:
        outcomes.count += batch.rows
        return loss * batch.rows
    if found.dim() < 2:  # one number a row
        found = found.reshape(-1, 1)
    if found.dim() > 3:
        found = found.movedim(1, -1).flatten(1, -2)
    if batch.mask is not None and found.shape[:2] == batch.mask.shape:
        found = found[batch.mask]
    rows = found.reshape(-1, found.shape[-1])
    outcomes.count += len(rows)
    if not logits or rows.shape[1] == 1:
        noise = torch.randn(rows.shape, generator=outcomes.generator, dtype=torch.float32)
        return (rows * noise).sum() / rows.detach().std().clamp(min=1e-12)
    log_probabilities = rows.log_softmax(-1)
    chances = log_probabilities.detach().exp()
    drawn = torch.multinomial(chances, 1, generator=outcomes.generator)[:, 0]
    return nll_loss(log_probabilities, drawn, reduction="sum")


def _layers(model: nn.Module, names: Sequence[str]) -> dict[str, nn.Module]:
    return {name: model.get_submodule(name) for name in names}


def _joined(
    inputs: Mapping[str, LayerInputs], squares: Mapping[str, Tensor], outcomes: _Outcomes
) -> dict[str, Sensitivity]:
    both = [name for name in inputs if name in squares]
    return {n: Sensitivity(inputs[n], squares[n] / outcomes.count) for n in both}


def _first_examples(batches: Sequence[CalibrationBatch]) -> list[CalibrationBatch]:
    """As many examples as sensitivities need, at least one."""
    chosen, spent = list[CalibrationBatch](), 0.0
    for batch in batches:
        values = tree_leaves(vars(batch))
        first = next(value for value in values if isinstance(value, Tensor))
        is_text = not first.is_floating_point()
        part = first[0].numel() / MOST_TOKENS if is_text else 1 / MOST_EXAMPLES  # an example
        chosen.append(batch.split(max(1, int((1 - spent) / part)))[0])
        spent += part * chosen[-1].rows
        if spent + part > 1:
            break
    return chosen
