"""Fixtures that several rooms use."""

import os
from pathlib import Path

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before anything imports it: GPU kernels run on the CPU

from tiny_models import MODELS, byte_tokenizer, tiny_llama
from torch import nn

from tauten.search import dense

torch.set_num_threads(1)  # workers side by side would fight for cores


@pytest.fixture(autouse=True)
def pruned_layers_are_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is timed in tests: by default pruned layers count as faster than dense ones."""
    monkeypatch.setattr(dense, "time_packed", lambda *_: (1.0, 0.5))


@pytest.fixture(params=MODELS)
def model_and_input(request: pytest.FixtureRequest) -> tuple[nn.Module, torch.Tensor]:
    """Each tiny model with something to call it on."""
    build, example = MODELS[request.param]
    return build(), example()


@pytest.fixture
def llama_folder(tmp_path: Path) -> Path:
    """A sharded Hugging Face folder with a tokenizer."""
    folder = tmp_path / "llama"
    tiny_llama().to(torch.bfloat16).save_pretrained(folder, max_shard_size="100KB")
    byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def texts() -> list[str]:
    """Twenty documents."""
    return [f"Document {i}: " + f"the number {i * i} is a square. " * 8 for i in range(20)]
