"""Trees of tensors as bytes that can't run code: JSON for their form, safetensors for tensors."""

import json
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import modeling_outputs
from transformers.utils.generic import ModelOutput

from tauten.core.errors import CorruptError, InputError

_HEAD_BYTES = 8  # the length of the JSON, little endian


def encode(tree: Any) -> bytes:
    """A tree as bytes.

    Args:
        tree: Of dicts with string keys, lists, tuples, outputs of transformers, tensors, strings,
            numbers, booleans and None. Tensors arrive on the CPU.
    Raises:
        InputError: It holds something else.
    """
    tensors: list[Tensor] = []
    form = json.dumps(_form(tree, tensors)).encode()
    named = {str(number): _own(tensor) for number, tensor in enumerate(tensors)}
    return b"".join(
        (len(form).to_bytes(_HEAD_BYTES, "little"), form, safetensors.torch.save(named))
    )


def decode(data: bytes) -> Any:
    """The tree that `encode` was given.

    Raises:
        CorruptError: These bytes are something else.
    """
    end = _HEAD_BYTES + int.from_bytes(data[:_HEAD_BYTES], "little")
    try:
        form = json.loads(data[_HEAD_BYTES:end])
        return _tree(form, safetensors.torch.load(data[end:]))
    except (ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        raise CorruptError(f"a message of {len(data)} bytes is damaged ({error})") from error


def _form(tree: Any, tensors: list[Tensor]) -> Any:
    if isinstance(tree, Tensor):
        tensors.append(tree)
        return {"tensor": len(tensors) - 1}
    if isinstance(tree, ModelOutput):
        values = {key: _form(value, tensors) for key, value in tree.items()}
        return {"output": type(tree).__name__, "values": values}
    if isinstance(tree, dict) and all(isinstance(key, str) for key in tree):
        return {"dict": {key: _form(value, tensors) for key, value in tree.items()}}
    if isinstance(tree, list | tuple):
        kind = "list" if isinstance(tree, list) else "tuple"
        return {kind: [_form(value, tensors) for value in tree]}
    if tree is None or isinstance(tree, bool | int | float | str):
        return tree
    raise InputError(
        f"a {type(tree).__name__} can't travel to another machine: pass and return tensors, "
        "numbers, strings, and lists, tuples or dicts of them"
    )


def _tree(form: Any, tensors: dict[str, Tensor]) -> Any:
    if not isinstance(form, dict):
        return form
    kind, content = next(iter(form.items()))
    if kind == "tensor":
        return tensors[str(content)]
    if kind == "output":
        values = {key: _tree(value, tensors) for key, value in form["values"].items()}
        return _output_class(content)(**values)
    if kind == "dict":
        return {key: _tree(value, tensors) for key, value in content.items()}
    items = [_tree(value, tensors) for value in content]
    return tuple(items) if kind == "tuple" else items


def _output_class(name: str) -> type[ModelOutput]:
    """A class of transformers' outputs; no other name is looked up."""
    found = getattr(modeling_outputs, name, None)
    if not (isinstance(found, type) and issubclass(found, ModelOutput)):
        raise CorruptError(f"{name!r} is no output of transformers.modeling_outputs")
    return found


def _own(tensor: Tensor) -> Tensor:
    """A copy on the CPU: safetensors refuses tensors that share memory."""
    return torch.empty(tensor.shape, dtype=tensor.dtype).copy_(tensor.detach())


def to_tensor(content: bytes) -> Tensor:
    """Bytes as a tensor, (bytes,) uint8."""
    if not content:
        return torch.empty(0, dtype=torch.uint8)
    return torch.frombuffer(bytearray(content), dtype=torch.uint8)


def to_bytes(tensor: Tensor) -> bytes:
    """What `to_tensor` was given."""
    return tensor.numpy().tobytes()
