"""How well a model's scores rank what belongs to a query."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from scipy.stats import rankdata
from torch import Tensor, nn

from tauten.core.errors import InputError
from tauten.data.tensors import call_model, main_output
from tauten.evaluation.metrics import Mean, Scores, alike
from tauten.evaluation.targets import group_ids, has_targets, targets_of


class RankCorrelation(Mean):
    """Spearman's correlation of scores with targets, or with the original's scores, by query.

    Queries in which all is wanted alike don't count; one whose scores are all the same counts 0.

    Args:
        groups: Which query each example belongs to; by default each row is one, of several scores.
    """

    name = "rank_correlation"
    meaning = "Spearman's, by query"

    def __init__(self, groups: Callable[[Any], Any] | None = None) -> None:
        self._groups = groups
        self._wanted: list[Tensor] = []

    def prepare(self, original: nn.Module, batches: Sequence[Any]) -> None:
        with torch.inference_mode():
            self._wanted = [
                targets_of(b) if has_targets(b) else main_output(call_model(original, b))
                for b in batches
            ]

    def score(self, model: nn.Module, batch: Any, index: int) -> Tensor:
        return main_output(call_model(model, batch))

    def scores(self, model: nn.Module, batches: Sequence[Any]) -> Scores:
        with torch.inference_mode():
            found = [_plain(self.score(model, b, i)) for i, b in enumerate(batches)]
        wanted = [_plain(values) for values in self._wanted]
        if self._groups is None:
            pairs = [*zip(np.concatenate(found), np.concatenate(wanted), strict=True)]
        else:
            ids = torch.cat([group_ids(self._groups, batch) for batch in batches]).numpy()
            flat = [np.concatenate(parts).reshape(len(ids), -1) for parts in (found, wanted)]
            if any(part.shape[1] != 1 for part in flat):
                raise InputError(f"{self.name}: with groups, each example has one score")
            pairs = [(flat[0][ids == i, 0], flat[1][ids == i, 0]) for i in np.unique(ids)]
        kept = [spearman(f, w) for f, w in pairs if len(np.unique(w)) > 1]
        if not kept:
            raise InputError(f"{self.name}: in no query anything is wanted above another")
        return alike(torch.tensor(kept, dtype=torch.float64), self.name)


def spearman(found: Any, wanted: Any) -> float:
    """Spearman's correlation of two (n,) arrays, ties by average ranks; 0 where one is constant."""
    ranks = [rankdata(values) - (len(values) + 1) / 2 for values in (found, wanted)]
    spread = float(np.sqrt((ranks[0] ** 2).sum() * (ranks[1] ** 2).sum()))
    return float((ranks[0] * ranks[1]).sum() / spread) if spread else 0.0


def _plain(values: Tensor) -> Any:
    return values.double().reshape(len(values), -1).numpy()
