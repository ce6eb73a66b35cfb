"""A model that minds what is done to it, and a run on it."""

from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from tiny_models import byte_tokenizer, tiny_llama

import tauten


@pytest.fixture(scope="session")
def sensitive_folder(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> Path:
    """A model trained for a moment, so that coarse weights do hurt it."""
    model = tiny_llama().train()
    tokenizer = byte_tokenizer()
    ids = torch.tensor([tokenizer(text)["input_ids"][:96] for text in texts])
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    for _ in range(40):
        optimizer.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
    folder = tmp_path_factory.mktemp("model") / "trained"
    model.eval().to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


class Run(NamedTuple):
    """What `optimize` returned, and the folder that it wrote."""

    result: tauten.Result
    out: Path


@pytest.fixture(scope="session")
def strict_run(
    sensitive_folder: Path, texts: list[str], tmp_path_factory: pytest.TempPathFactory
) -> Run:
    """A search in which coarse recipes fail; spares the processes that measure resident memory."""
    out = tmp_path_factory.mktemp("strict") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tauten.search.publish.resident_bytes", lambda model: 1)
        goal = tauten.Goal(max_drop=0.001)
        options: dict[str, Any] = {"max_tokens": 1500, "effort": "thorough"}
        return Run(tauten.optimize(sensitive_folder, texts, goal, out=out, **options), out)
