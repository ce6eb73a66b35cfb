"""A student's loss against its teacher: both run on a batch, outputs and blocks are compared."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tauten.core.errors import InputError
from tauten.data.tensors import main_output
from tauten.models.calibration import CalibrationBatch, fast_dtype
from tauten.models.matching import matching_blocks
from tauten.models.source import shared_copy
from tauten.models.structure import packable_modules
from tauten.models.targets import Targets
from tauten.solvers.distillation import relative_error, top_classes, top_divergence

TOP = 64  # classes of the teacher that are told apart
SKEW = 0.1  # of DistiLLM
LEAST = -50.0  # log-probability; half precision ends not far below, and -inf times 0 is NaN
PREDICTIONS = {"kl", "skew"}
HIDDEN, OUTPUT, EMBEDDING = "hidden", "output", "embedding"
Outputs = dict[str, Tensor]


class Imitation:
    """How far a student is from its teacher on a batch.

    Of the teacher's predictions the likeliest classes are kept and the mass of all others, about
    400 bytes a token; of its blocks' outputs all, in bfloat16.

    Args:
        student: As it will be called; it may be trained between calls, its shape stays.
        teacher: Isn't changed.
        parts: Of the loss, added up: `kl` or `skew`, of predictions; `hidden`, the squared
            errors of matching blocks' outputs and of an output that isn't logits, each relative
            to the variance of the teacher's; their mean; `embedding`, the same of the output's
            mean over a row's tokens.
        folder: Where the teacher's answers are kept.
        dtype: What the products of both are computed in.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        parts: Sequence[str],
        folder: Path,
        dtype: torch.dtype | None = None,
    ):
        self._student, self._parts, self._dtype = student, parts, dtype or fast_dtype()
        self._predicts = bool(PREDICTIONS & set(parts))
        self._pairs = matching_blocks(student, teacher) if HIDDEN in parts else []
        self._teacher = _in_dtype(teacher, self._dtype)
        self._targets = Targets(folder)

    def loss(self, index: int | None, batch: CalibrationBatch) -> Tensor:
        """A scalar with gradients.

        Args:
            index: Of the batch; what the teacher says to it is kept under that.
            batch: Padding that its mask marks doesn't count.
        Raises:
            InputError: Student and teacher give different shapes, or nothing to compare.
        """
        wanted = self._targets.get(index, lambda: self._ask(batch))
        with torch.enable_grad():
            states, logits = self._outputs(self._student, [ours for ours, _ in self._pairs], batch)
            losses = [] if logits is None else [self._prediction_loss(logits, wanted)]
            embedding = states.pop(EMBEDDING, None)
            if states:
                losses.append(torch.stack([_error(states, wanted, key) for key in states]).mean())
            if embedding is not None:
                losses.append(_error({EMBEDDING: embedding}, wanted, EMBEDDING))
            return torch.stack(losses).sum()

    def _ask(self, batch: CalibrationBatch) -> Outputs:
        """What the teacher says to a batch, in little room."""
        blocks = [theirs for _, theirs in self._pairs]
        with torch.no_grad():
            states, logits = self._outputs(self._teacher, blocks, batch)
            wanted = {key: state.to(torch.bfloat16) for key, state in states.items()}
            if logits is None:
                return wanted
            indices, log_probabilities = top_classes(logits, TOP)
            return wanted | {
                "indices": indices.int(),
                "log_probabilities": log_probabilities.clamp(min=LEAST).half(),
                "classes": torch.tensor(logits.shape[1]),
            }

    def _outputs(
        self, model: nn.Module, blocks: Sequence[str], batch: CalibrationBatch
    ) -> tuple[Outputs, Tensor | None]:
        """States to compare, by place in `blocks`, and logits (rows, classes) if they count."""
        states: Outputs = {}
        mixed = torch.autocast("cpu", self._dtype, enabled=self._dtype == torch.bfloat16)
        with _recorded(model, blocks, states), mixed:
            output = model(*batch.args, **batch.kwargs)
        if HIDDEN in self._parts and not self._predicts and not hasattr(output, "logits"):
            states[OUTPUT] = main_output(output)
        states = {key: _without_padding(state, batch.mask) for key, state in states.items()}
        if HIDDEN in self._parts and not states:
            raise InputError(
                f"{type(model).__name__} has no blocks that match its teacher's; pass loss='kl'"
            )
        if EMBEDDING in self._parts:
            states[EMBEDDING] = _embedding(model, output, batch.mask)
        return states, _logits(model, output, batch.mask) if self._predicts else None

    def _prediction_loss(self, logits: Tensor, wanted: Outputs) -> Tensor:
        rows, classes = len(wanted["indices"]), int(wanted["classes"])
        if logits.shape != (rows, classes):
            raise InputError(
                f"the student predicts {logits.shape[1]} classes at {len(logits)} places, its "
                f"teacher {classes} at {rows}; they need the same vocabulary and output"
            )
        skew = SKEW if "skew" in self._parts else 0.0
        return top_divergence(logits, wanted["indices"].long(), wanted["log_probabilities"], skew)


def _error(states: Outputs, wanted: Outputs, key: str) -> Tensor:
    """Relative error of the student's states at one place."""
    if states[key].shape != wanted[key].shape:
        what = "embeddings" if key == EMBEDDING else "hidden states"
        ours, theirs = tuple(states[key].shape[1:]), tuple(wanted[key].shape[1:])
        raise InputError(
            f"{what} of the student are of shape {ours}, its teacher's of {theirs}; they can be "
            "compared only where they are equal: pass loss='kl' if the models predict classes"
        )
    return relative_error(states[key], wanted[key])


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


def _in_dtype(teacher: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A copy that shares its tensors, but for the weights of products in bfloat16."""
    copy = shared_copy(teacher).eval()
    if dtype == torch.bfloat16:
        for _, layer in packable_modules(copy):
            if not isinstance(layer, nn.Embedding):
                weight = layer._parameters["weight"]
                assert weight is not None
                layer.weight = nn.Parameter(weight.to(dtype), requires_grad=False)
    return copy
