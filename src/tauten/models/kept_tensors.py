"""Tensors that a run keeps on disk for itself, with a digest that tells whether they are whole."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from tauten.core.errors import CorruptError
from tauten.core.files import whole_file
from tauten.models.source import fingerprint_tensors

_DIGEST = "sha256"


def write_tensors(
    file: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, str] | None = None
) -> None:
    """Write a safetensors file.

    Args:
        file: Replaced in one step.
        tensors: By name.
        facts: Texts for its header.
    """
    content = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    facts = dict(facts or {})
    encoded = safetensors.torch.save(content, {**facts, _DIGEST: _digest(content, facts)})
    with whole_file(file) as opened:
        opened.write(encoded)


def read_tensors(file: Path, remedy: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and texts that `write_tensors` was given.

    Args:
        file: It.
        remedy: What to do about damage.
    Raises:
        CorruptError: It isn't what was written.
    """
    try:
        with safe_open(file, framework="pt") as opened:
            facts = dict(opened.metadata() or {})
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise CorruptError(f"{file}: damaged ({error}); {remedy}") from None
    if facts.pop(_DIGEST, None) != _digest(tensors, facts):
        raise CorruptError(f"{file}: damaged (not what its digest says); {remedy}")
    return tensors, facts


def _digest(tensors: dict[str, Tensor], facts: Mapping[str, str]) -> str:
    digest = hashlib.sha256(fingerprint_tensors(tensors).encode())
    digest.update(repr(sorted(facts.items())).encode())
    return digest.hexdigest()
