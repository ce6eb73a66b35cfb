"""A model that minds what is done to it."""

from pathlib import Path

import pytest
import torch
from tiny_models import byte_tokenizer, tiny_llama


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
