"""Settings and fixtures that several rooms use.

Nothing heavy is imported here: of several pytest processes, the one that only deals tests out would
import it for nothing, and first.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    import torch
    from torch import nn

os.environ.setdefault("OMP_NUM_THREADS", "1")  # workers side by side would fight for cores


def pytest_addoption(parser: pytest.Parser) -> None:
    """Nothing of torch's defaults may reach a result."""
    dtypes = ("float64", "bfloat16", "float16")
    parser.addoption("--default-dtype", choices=dtypes, help="run under torch's other default")


def pytest_collection(session: pytest.Session) -> None:
    """Where there is no GPU its kernels run on the CPU; Triton reads that when it is imported."""
    import torch

    if dtype := session.config.getoption("--default-dtype"):
        from default_dtype import InputsInFloat32

        torch.set_default_dtype(getattr(torch, dtype))
        InputsInFloat32().__enter__()
    if not torch.cuda.is_available():
        os.environ["TRITON_INTERPRET"] = "1"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test of `model_and_input` runs for each tiny model."""
    if "model_and_input" in metafunc.fixturenames:
        from tiny_models import MODELS

        metafunc.parametrize("model_and_input", MODELS, indirect=True)


@pytest.fixture
def model_and_input(request: pytest.FixtureRequest) -> tuple[nn.Module, torch.Tensor]:
    """A tiny model with something to call it on."""
    from tiny_models import MODELS

    build, example = MODELS[request.param]
    return build(), example()


@pytest.fixture(autouse=True)
def pruned_layers_are_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is timed in tests: by default pruned layers count as faster than dense ones."""
    from tauten.search import dense

    monkeypatch.setattr(dense, "time_packed", lambda *_: (1.0, 0.5))


@pytest.fixture(autouse=True)
def no_flush_to_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is written outlives a killed process without a flush, which takes milliseconds."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


@pytest.fixture
def llama_folder(tmp_path: Path) -> Path:
    """A sharded Hugging Face folder with a tokenizer."""
    import torch
    from tiny_models import byte_tokenizer, tiny_llama

    folder = tmp_path / "llama"
    tiny_llama().to(torch.bfloat16).save_pretrained(folder, max_shard_size="100KB")
    byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def texts() -> list[str]:
    """Twenty documents."""
    return [f"Document {i}: " + f"the number {i * i} is a square. " * 8 for i in range(20)]
