"""A metric of the user's own: a function, and what must be known of its numbers."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tauten.core.errors import InputError, TautenError
from tauten.core.measurement import Drop
from tauten.core.trees import copied
from tauten.data.tensors import rows_of
from tauten.data.windows import TokenBatch
from tauten.evaluation.identity import identity
from tauten.evaluation.metrics import MODEL_ERRORS, Mean, Measure, Scores, joined
from tauten.evaluation.statistics import CONFIDENCE
from tauten.evaluation.targets import group_ids


class Metric(Mean):
    """A function (model, batch) -> one number an example, or one for the whole batch.

    Args:
        function: Numbers of more dimensions than one, such as of tokens, are averaged over each
            example. Those of windows of text are joined by document. Or the name of a metric that
            serves the model and its data, such as `accuracy` or `rank_correlation`, for `groups`.
        higher_is_better: False for losses, error rates and distances. By default what the function
            says by an attribute of this name, else True.
        name: In reports; by default the function's.
        groups: Which examples belong together, such as those of one query or patient: a function
            batch -> one whole number an example. A group is one independent unit, and lies in one
            split.
    Raises:
        InputError: The function can't be called so.
    """

    def __init__(
        self,
        function: Callable[[nn.Module, Any], Any] | str,
        *,
        higher_is_better: bool | None = None,
        name: str | None = None,
        groups: Callable[[Any], Any] | None = None,
    ):
        self.groups = groups
        self.named = function if isinstance(function, str) else ""
        if isinstance(function, str):
            if higher_is_better is not None or name is not None:
                raise InputError(f"metric {function!r} has a direction and a name of its own")
            self.name = function
            return
        try:
            inspect.signature(function).bind(None, None)
        except TypeError as error:
            raise InputError(f"the metric {function} can't take (model, batch): {error}") from error
        if higher_is_better not in (None, True, False):
            raise InputError(f"higher_is_better={higher_is_better!r}: expected True or False")
        own = bool(getattr(function, "higher_is_better", True))
        self.higher_is_better = own if higher_is_better is None else higher_is_better
        self.name = str(name or getattr(function, "__name__", type(function).__name__))
        self._function = function

    @property
    def identity(self) -> str:
        """Changes with what the metric computes."""
        function = identity((self._function, self.groups, self.higher_is_better))
        return f"{self.name} {function[:16]}"

    def scores(self, model: nn.Module, batches: Sequence[Any]) -> Scores:
        found = super().scores(model, batches)
        if self.groups is None and not isinstance(batches[0], TokenBatch):
            return found
        units = [
            b.documents if isinstance(b, TokenBatch) else group_ids(self.groups, b) for b in batches
        ]
        return joined(found, torch.cat(units))

    def score(self, model: nn.Module, batch: Any, index: int) -> Tensor:
        try:
            # A copy: what a metric pops or writes in place isn't gone at its next call.
            found = torch.as_tensor(self._function(model, copied(batch)), dtype=torch.float64)
        except MODEL_ERRORS as error:
            raise TautenError(f"the metric {self.name} raised {error!r}") from error
        rows = len(batch.ids) if isinstance(batch, TokenBatch) else rows_of(batch)
        if found.numel() > 1 and len(found) == rows:
            return found.flatten(1).mean(1) if found.dim() > 1 else found
        if found.numel() == 1 and not (rows > 1 and self.groups is not None):
            return found.flatten()
        wanted = f"({rows},), one number an example"
        raise InputError(
            f"the metric {self.name} returned {tuple(found.shape)} for a batch of {rows} examples: "
            f"expected {wanted}{'' if self.groups else ', or one number for the batch'}; join "
            "numbers of tokens, pixels or boxes by the example that they belong to"
        )


def grouped(kind: Callable[[], Measure], groups: Callable[[Any], Any]) -> Measure:
    """A metric of Tauten's own, its scores joined by groups.

    Args:
        kind: Makes the metric.
        groups: As of `Metric`.
    """
    return _Grouped(kind(), groups)


class _Grouped(Measure):
    def __init__(self, inner: Measure, groups: Callable[[Any], Any]):
        self.name, self.meaning = inner.name, inner.meaning
        self.higher_is_better = inner.higher_is_better
        self._inner, self._groups = inner, groups

    @property
    def identity(self) -> str:
        return f"{self._inner.identity} {identity(self._groups)[:16]}"

    def prepare(self, original: nn.Module, batches: Sequence[Any]) -> None:
        self._inner.prepare(original, batches)

    def scores(self, model: nn.Module, batches: Sequence[Any]) -> Scores:
        units = torch.cat([group_ids(self._groups, batch) for batch in batches])
        return joined(self._inner.scores(model, batches), units)

    def value(self, scores: Scores) -> float:
        return self._inner.value(scores)

    def drop(
        self,
        original: Scores,
        candidate: Scores,
        confidence: float = CONFIDENCE,
        unit: str = "",
    ) -> Drop:
        return self._inner.drop(original, candidate, confidence, unit)
