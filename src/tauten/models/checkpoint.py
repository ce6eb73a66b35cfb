"""How far a training has come, as one file."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tauten.core.description import checked, parse_json
from tauten.core.errors import CorruptError
from tauten.models.kept_tensors import read_tensors, write_tensors

STATE = "state"
_MOMENTS = ("step", "exp_avg", "exp_avg_sq")  # of Adam


class Checkpoint:
    """Trained tensors, the optimizer's state of each, and plain values, whole or absent.

    Memory: while it is saved, as much again as what it holds.

    Args:
        file: Safetensors; the plain values are JSON in its header.
        tensors: By name; restored in place.
        optimizer: Of those that are learned by descent.
    """

    def __init__(self, file: Path, tensors: dict[str, Tensor], optimizer: torch.optim.Optimizer):
        self._file, self._tensors, self._optimizer = file, tensors, optimizer

    def save(self, state: dict[str, Any], earlier: Mapping[str, Tensor]) -> None:
        """Replace what was saved before.

        Args:
            state: The plain values.
            earlier: Tensors to save in place of what those of that name hold now.
        """
        tensors = {**self._tensors, **earlier}
        content = dict(tensors)
        for name, tensor in self._tensors.items():
            for key, value in self._optimizer.state.get(tensor, {}).items():
                content[f"{name}/{key}"] = value
        write_tensors(self._file, content, {STATE: json.dumps(state)})

    def restore(self, kind: Any) -> Any:
        """Put what was saved into its places; None if nothing was saved.

        Args:
            kind: Type of the plain values.
        Returns:
            The plain values.
        Raises:
            CorruptError: The file is damaged, or of another training.
        """
        if not self._file.is_file():
            return None
        saved, facts = read_tensors(self._file, "delete it to start anew")
        try:
            state = checked(kind, parse_json(facts[STATE], STATE, wide=True), STATE)
            moments = self._moments(saved)
            with torch.no_grad():
                for name, tensor in self._tensors.items():
                    tensor.copy_(saved[name])
        except (ValueError, KeyError, TypeError, RuntimeError) as error:
            raise CorruptError(
                f"{self._file}: no checkpoint of this training ({error}); delete it to start anew"
            ) from error
        for place, (tensor, key) in moments.items():
            self._optimizer.state[tensor][key] = saved[place]
        return state

    def _moments(self, saved: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, str]]:
        """Of each saved tensor of the optimizer, what it belongs to and its key there.

        Raises:
            ValueError: A saved tensor belongs nowhere, is of another shape, or is missing.
        """
        learned = [name for name in self._tensors if f"{name}/{_MOMENTS[0]}" in saved]
        moments = {
            f"{name}/{key}": (self._tensors[name], key) for name in learned for key in _MOMENTS
        }
        if saved.keys() != self._tensors.keys() | moments.keys():
            other = min(saved.keys() ^ (self._tensors.keys() | moments.keys()))
            raise ValueError(f"tensor {other!r} is unknown or missing")
        for place, value in saved.items():
            tensor, key = moments.get(place) or (self._tensors[place], "")
            if value.shape != (() if key == "step" else tensor.shape):
                raise ValueError(f"tensor {place!r} is of another shape")
        return moments
