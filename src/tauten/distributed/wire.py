"""Trees of tensors as bytes that can't run code: JSON for their form, safetensors for tensors."""

import importlib
import json
import re
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers.utils.generic import ModelOutput

from tauten.core.errors import CorruptError, InputError

_FAULTS = (
    *(ValueError, LookupError, TypeError, AttributeError),
    *(SafetensorError, RecursionError, StopIteration),
)
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
    except _FAULTS as error:
        raise CorruptError(f"a message of {len(data)} bytes is damaged ({error})") from error


def _form(tree: Any, tensors: list[Tensor]) -> Any:
    if isinstance(tree, Tensor):
        tensors.append(tree)
        return {"tensor": len(tensors) - 1}
    if isinstance(tree, ModelOutput) and _output_class(*_name(tree)) is type(tree):
        values = {key: _form(value, tensors) for key, value in tree.items()}
        return {"output": _name(tree), "values": values}
    is_dict = isinstance(tree, dict) and not isinstance(tree, ModelOutput)
    if is_dict and all(isinstance(key, str) for key in tree):
        return {"dict": {key: _form(value, tensors) for key, value in tree.items()}}
    if isinstance(tree, list | tuple) and not hasattr(tree, "_fields"):
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
        output = _output_class(*content)
        if output is None:
            raise CorruptError(f"{content[-1]} is no output of transformers as installed here")
        return output(**values)
    if kind == "dict":
        return {key: _tree(value, tensors) for key, value in content.items()}
    items = [_tree(value, tensors) for value in content]
    return tuple(items) if kind == "tuple" else items


def _name(output: ModelOutput) -> list[str]:
    return [type(output).__module__, type(output).__name__]


def _output_class(module: str, name: str) -> type[ModelOutput] | None:
    """A class of transformers' outputs; nothing else is imported or looked up."""
    try:
        found = getattr(importlib.import_module(module), name, None) if _is_known(module) else None
    except ImportError:  # another version of transformers has it
        return None
    return found if isinstance(found, type) and issubclass(found, ModelOutput) else None


def _is_known(module: str) -> bool:
    """Whether a module is one of transformers that define outputs."""
    models = r"models\.\w+\.modeling_\w+"
    form = rf"transformers\.(modeling_outputs|generation\.utils|{models})"
    return re.fullmatch(form, module) is not None


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
