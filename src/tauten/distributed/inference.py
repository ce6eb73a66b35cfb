"""The job of calling a model, and of scoring it."""

from typing import Any

import torch
from torch import nn

from tauten.data.windows import TokenBatch
from tauten.distributed.blueprint import open_model
from tauten.evaluation.metrics import Perplexity
from tauten.evaluation.tensor_metrics import Accuracy
from tauten.evaluation.user_metric import Metric
from tauten.parallel.data_parallel import call_method
from tauten.parallel.parcel import switch_cache_off
from tauten.parallel.rows import to_device


def own_device() -> torch.device:
    """Of this worker: its GPU, or the CPU where there is none."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


class Inference:
    """Calls of a model, which the worker holds whole.

    Args:
        model: For `open_model`.
    """

    def __init__(self, model: Any):
        self._device = own_device()
        self._model: Any = _opened(model, self._device)
        if isinstance(self._model, nn.Module):  # else it is the user's own, called as it is
            switch_cache_off(self._model)

    @torch.no_grad()
    def __call__(self, payload: Any) -> Any:
        """Outputs of a call: method, positional and keyword arguments."""
        return call_method(self._model, *to_device(payload, self._device))


class Scoring:
    """Scores of a model on batches, one at a time.

    Args:
        model: For `open_model`.
        metric: `perplexity`, `accuracy`, or, on this machine, a user's function.
    """

    def __init__(self, model: Any, metric: Any):
        self._device = own_device()
        self._model = _opened(model, self._device)
        self._metric: Any = {"perplexity": Perplexity, "accuracy": Accuracy}.get(metric)
        self._metric = self._metric() if self._metric else Metric(metric)

    def __call__(self, payload: Any) -> Any:
        """Totals and weights of a batch's windows or examples, (n,) float64 each."""
        if isinstance(self._metric, Perplexity):
            return self._metric.window_scores(self._model, TokenBatch(**payload))
        scores = self._metric.scores(self._model, [to_device(payload, self._device)])
        return scores.total, scores.weight


def _opened(model: Any, device: torch.device) -> Any:
    """The model on this worker's device; one that stays in its process is where it was."""
    opened = open_model(model)
    return opened if opened is model else opened.to(device)
