"""What of the outputs of a student and its teacher is compared."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tauten.core.errors import InputError
from tauten.data.tensors import main_output
from tauten.models.calibration import CalibrationBatch
from tauten.models.source import shared_copy
from tauten.models.structure import packable_modules
from tauten.solvers.distillation import top_classes

TOP = 64  # classes of the teacher that are told apart
LEAST = -50.0  # log-probability; half precision ends not far below, and -inf times 0 is NaN
PREDICTIONS = {"kl", "skew"}
HIDDEN, OUTPUT, EMBEDDING = "hidden", "output", "embedding"
Outputs = dict[str, Tensor]


@dataclass(frozen=True)
class Comparison:
    """The parts of a loss, and how both models are run for them.

    Attributes:
        parts: As for `Imitation`.
        dtype: What products are computed in.
    """

    parts: tuple[str, ...]
    dtype: torch.dtype

    @property
    def predicts(self) -> bool:
        """Whether predictions are compared."""
        return bool(PREDICTIONS & set(self.parts))

    def outputs(
        self, model: nn.Module, blocks: Sequence[str], batch: CalibrationBatch
    ) -> tuple[Outputs, Tensor | None]:
        """States to compare, by place in `blocks`, and logits (rows, classes) if they count."""
        states: Outputs = {}
        mixed = torch.autocast("cpu", self.dtype, enabled=self.dtype == torch.bfloat16)
        with _recorded(model, blocks, states), mixed:
            output = batch.call(model)
        if HIDDEN in self.parts and not self.predicts and not hasattr(output, "logits"):
            states[OUTPUT] = main_output(output)
        states = {key: _without_padding(state, batch.mask) for key, state in states.items()}
        if HIDDEN in self.parts and not states:
            raise InputError(
                f"{type(model).__name__} has no blocks that match its teacher's; pass loss='kl'"
            )
        if EMBEDDING in self.parts:
            states[EMBEDDING] = _embedding(model, output, batch.mask)
        return states, _logits(model, output, batch.mask) if self.predicts else None

    def answer(self, teacher: nn.Module, blocks: Sequence[str], batch: CalibrationBatch) -> Outputs:
        """What a teacher says to a batch, in little room.

        Of its predictions the likeliest classes are kept and the mass of all others, about 400
        bytes a token; of its blocks' outputs all, in bfloat16.
        """
        with torch.no_grad():
            states, logits = self.outputs(teacher, blocks, batch)
            wanted = {key: state.to(torch.bfloat16) for key, state in states.items()}
            if logits is None:
                return wanted
            indices, log_probabilities = top_classes(logits, TOP)
            return wanted | {
                "indices": indices.int(),
                "log_probabilities": log_probabilities.clamp(min=LEAST).half(),
                "classes": torch.tensor(logits.shape[1]),
            }


def in_dtype(teacher: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A copy that shares its tensors, but for the weights of products in bfloat16."""
    copy = shared_copy(teacher).eval()
    if dtype == torch.bfloat16:
        for _, layer in packable_modules(copy):
            if not isinstance(layer, nn.Embedding):
                weight = layer._parameters["weight"]
                assert weight is not None
                layer.weight = nn.Parameter(weight.to(dtype), requires_grad=False)
    return copy


def _embedding(model: nn.Module, output: Any, mask: Tensor | None) -> Tensor:
    """(rows, features): the mean over the tokens of a row that count."""
    state = main_output(output).float()
    if hasattr(output, "logits") or state.dim() not in (2, 3):
        raise InputError(
            f"{type(model).__name__} returns no hidden states to average; pass loss='kl'"
        )
    if state.dim() == 2:
        return state
    if mask is None:
        return state.mean(1)
    return (state * mask[..., None]).sum(1) / mask.sum(1, keepdim=True).clamp(min=1)


def _logits(model: nn.Module, output: Any, mask: Tensor | None) -> Tensor:
    """Predictions as (rows, classes), padding left out.

    Classes stand last in vectors and sequences; in maps second, as in torch's own losses.
    """
    if isinstance(output, Tensor | tuple | list) or hasattr(output, "logits"):
        logits = main_output(output)
        if logits.dim() > 3:
            logits = logits.movedim(1, -1).flatten(0, -2)
        return _without_padding(logits, mask)
    raise InputError(
        f"{type(model).__name__} returns no logits; pass loss='hidden', which compares what it "
        "does, or loss='embedding' if the mean over tokens is what counts"
    )


def _without_padding(state: Tensor, mask: Tensor | None) -> Tensor:
    """(rows, length, features) -> (tokens, features); other shapes as they are."""
    if state.dim() != 3:
        return state
    return state.flatten(0, 1) if mask is None else state[mask]


@contextlib.contextmanager
def _recorded(model: nn.Module, blocks: Sequence[str], states: Outputs) -> Iterator[None]:
    """Put what blocks return into `states`, by their place."""
    handles = []
    for place, name in enumerate(blocks):

        def record(_: nn.Module, __: Any, output: Any, key: str = str(place)) -> None:
            states[key] = main_output(output)

        handles.append(model.get_submodule(name).register_forward_hook(record))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
