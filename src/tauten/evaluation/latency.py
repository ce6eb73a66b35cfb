"""How long a token or a call takes, side by side with the original."""

import statistics
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

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
        prefill_s: Median time of a prompt of 128 tokens; None for other models.
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
        language_model: Time greedy decoding with a cache instead of calls.
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


def _decode(model: nn.Module, example: Any) -> tuple[list[float], list[float]]:
    vocabulary = int(model.config.vocab_size)  # type: ignore[union-attr, arg-type]
    ids = (torch.arange(PROMPT_TOKENS) % vocabulary)[None]
    with torch.inference_mode():
        start = time.perf_counter()
        output = model(input_ids=ids, use_cache=True)
        times = [time.perf_counter() - start]
        for _ in range(NEW_TOKENS):
            token = output.logits[:, -1:].argmax(-1)
            start = time.perf_counter()
            output = model(input_ids=token, past_key_values=output.past_key_values, use_cache=True)
            times.append(time.perf_counter() - start)
    return times[:1], times[1:]


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
