"""How long a token or a call takes, side by side with the original."""

import math
import statistics
import time
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from tauten.core.progress import track
from tauten.data.tensors import call_model

PROMPT_TOKENS = 128
NEW_TOKENS = 16


@dataclass(frozen=True)
class Latency:
    """Times of one model.

    Attributes:
        median_s: Of one token (language models) or one call.
        spread_s: Interquartile range.
        prefill_s: Median time of a prompt of 128 tokens, from the call of `generate` to its first
            token; None for other models.
    """

    median_s: float
    spread_s: float
    prefill_s: float | None = None

    def facts(self) -> dict[str, Any]:
        """Plain data for `timing.json`."""
        rate = None if self.prefill_s is None else round(1 / self.median_s, 2)
        return {**vars(self), "tokens_per_s": rate}


def compare_latency(
    models: dict[str, nn.Module], example: Any, language_model: bool, rounds: int = 3
) -> dict[str, Latency]:
    """Time models alternately, so that a noisy moment hits all of them.

    Args:
        models: By name.
        example: A batch, as `call_model` takes it; unused for language models.
        language_model: Time the tokens that `generate` gives, greedily, instead of calls.
        rounds: Turns each model gets after a warm-up turn that isn't counted.
    """
    run = _decode if language_model else _calls
    prefills: dict[str, list[float]] = {name: [] for name in models}
    steps: dict[str, list[float]] = {name: [] for name in models}
    for turn in track(range(rounds + 1), "timing", rounds + 1):
        for name, model in models.items():
            prefill, times = run(model, example)
            if turn:
                steps[name] += times
                prefills[name] += prefill
    return {name: _latency(steps[name], prefills[name]) for name in models}


class _Clock:
    """A streamer for `generate` that notes when tokens come; the prompt is the first to come."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, tokens: Tensor) -> None:
        """Called by `generate` for the prompt and for each token."""
        self.times.append(time.perf_counter())

    def end(self) -> None:
        """Called by `generate` after the last token."""


def _decode(model: Any, example: Any) -> tuple[list[float], list[float]]:
    """Times of a prompt, from the call to its first token, and of each token after that."""
    context = getattr(model.config, "max_position_embeddings", None) or math.inf
    count = max(1, min(PROMPT_TOKENS, context - NEW_TOKENS - 1))
    ids = (torch.arange(count) % int(model.config.vocab_size))[None]
    clock = _Clock()
    options = {"eos_token_id": None, "pad_token_id": 0}  # it shall not end early
    start = time.perf_counter()
    model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=NEW_TOKENS + 1,
        do_sample=False,
        streamer=clock,
        **options,
    )
    _, first, *later = clock.times
    return [first - start], [b - a for a, b in pairwise([first, *later])]


def _calls(model: nn.Module, example: Any) -> tuple[list[float], list[float]]:
    times = []
    with torch.inference_mode():
        for _ in range(5):
            start = time.perf_counter()
            call_model(model, example)
            times.append(time.perf_counter() - start)
    return [], times


def _latency(steps: list[float], prefills: list[float]) -> Latency:
    low, _, high = statistics.quantiles(steps, n=4)
    prefill = statistics.median(prefills) if prefills else None
    return Latency(statistics.median(steps), high - low, prefill)
