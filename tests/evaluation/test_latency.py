"""What is timed; how long it takes is no matter here."""

from typing import Any

import pytest
import torch
from packed_decoders import packed_model

from tauten.evaluation.latency import NEW_TOKENS, PROMPT_TOKENS, compare_latency
from tauten.models.generation import use_native_decoder
from tauten.runtime import library
from tauten.runtime.decoder import Decoder


@pytest.mark.skipif(library.load() is None, reason="the native library isn't built")
def test_a_token_is_timed_as_users_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """By `generate`, with the native decoder where the model has one."""
    calls: list[int] = []
    prefill = Decoder.prefill

    def counted(self: Decoder, ids: Any) -> torch.Tensor:
        calls.append(len(ids))
        return prefill(self, ids)

    monkeypatch.setattr(Decoder, "prefill", counted)
    models = {"original": packed_model(), "candidate": use_native_decoder(packed_model())}
    times = compare_latency(models, None, True, rounds=1)
    assert calls == ([PROMPT_TOKENS] + [1] * NEW_TOKENS) * 2, "one warm-up, one counted"
    for latency in times.values():
        assert latency.prefill_s > 0 and latency.median_s > 0  # a busy machine may mix them up
