"""A search whose trials workers make side by side: what one after the other finds."""

from pathlib import Path
from typing import Any

import pytest

import tauten
from tauten.core.goal import Goal
from tauten.search import ladder, run

LADDER = [(technique, technique) for technique in (tauten.RTN(4, 32), tauten.GPTQ(3, 32))]


def test_the_result_is_that_of_a_search_without_workers(
    tmp_path: Path, llama_folder: Path, texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same trials in the same order with the same figures, and the same bytes."""
    monkeypatch.setitem(ladder.BY_PILLAR, "compress", tuple(LADDER))
    monkeypatch.setattr(ladder, "PRUNING", ())
    monkeypatch.setitem(ladder.SMALLER, "decoder", ())
    monkeypatch.setattr(run, "time_candidate", lambda *_: {})  # figures that differ anyway
    found: list[tuple[Any, bytes]] = []
    for workers in (None, 2):
        out = tmp_path / f"workers {workers}"
        options: dict[str, Any] = {"pillars": ("compress",), "max_tokens": 512, "out": out}
        goal = Goal(max_drop=0.02)
        result = tauten.optimize(str(llama_folder), texts, goal, workers=workers, **options)
        found.append((result, (out / "model.safetensors").read_bytes()))
    (alone, alone_bytes), (together, together_bytes) = found
    assert len(alone.trials) >= len(LADDER)
    assert [t.recipe for t in alone.trials] == [t.recipe for t in together.trials]
    assert [t.measurement for t in alone.trials] == [t.measurement for t in together.trials]
    assert together.reason == alone.reason
    assert alone_bytes == together_bytes
