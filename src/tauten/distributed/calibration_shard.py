"""The job of calibrating on some of the data: what layers see of it is summed where it lies."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from tauten.distributed.blueprint import open_skeleton
from tauten.models import packing
from tauten.models.batch import CalibrationBatch
from tauten.models.calibration import Calibration
from tauten.models.part_tensors import PartTensors
from tauten.models.structure import find_structure


class CalibrationShards:
    """Members of a crew, each with some batches and a model of its own modules.

    Args:
        model: As `open_model` takes it.
        correct, counted: As for `Calibration`.
        dtype: That all machines compute in.
    """

    def __init__(self, model: Any, correct: bool, counted: bool, dtype: str):
        self._open: Callable[[], Any] = open_skeleton(model)
        self._options = {"correct": correct, "counted": counted, "dtype": getattr(torch, dtype)}
        self._members: dict[int, _Shard] = {}

    def __call__(self, payload: Any) -> Any:
        """Take a message to a member: a verb, and its arguments by name."""
        member, message = payload
        verb, arguments = message
        if verb == "start":
            model, loader = self._open()
            place = arguments.pop("place")
            self._members[member] = _Shard(model, loader, place, self._options)
        return getattr(self._members[member], verb)(**arguments)


class _Shard:
    """A member: each method answers a verb."""

    def __init__(
        self, model: nn.Module, loader: Any, place: tuple[int, int], options: dict[str, Any]
    ):
        self._model, self._place, self._options = model, place, options
        self._structure = find_structure(model)
        self._tensors = PartTensors(model, self._structure, loader)

    def start(self, batches: list[dict[str, Any]], names: list[str]) -> Any:
        """Bring the batches to the first block; sums, where blocks form no chain."""
        # Copied: messages between processes of one machine lie in memory that the next overwrites.
        calls = [CalibrationBatch(**tree_map(_copied, batch)) for batch in batches]
        self._calibration = Calibration(calls, place=self._place, **self._options)
        self._model.eval()
        blocks = self._structure.blocks
        self._calibration.start(self._model, blocks, self._tensors.filled, names)
        return None if self._calibration.whole is None else self._calibration.whole.tree()

    def gather(self, part: str, names: list[str]) -> Any:
        """Sums of what layers see."""
        return self._calibration.gather(part, names).tree()

    def gather_starved(self, part: str, tokens: dict[str, int]) -> Any:
        """Sums of what experts would see that too few tokens reach."""
        return self._calibration.gather_starved(part, tokens).tree()

    def remember(self, part: str) -> None:
        """Let the states pass the block as it is."""
        self._calibration.remember(part)

    def step(self, part: str) -> None:
        """Bring the states through the block that is remembered."""
        self._calibration.advance(part)

    def advance(self, part: str, specs: dict[str, Any], tensors: dict[str, Any]) -> None:
        """Bring the states through a packed block."""
        packing.install_empty(self._model, specs)
        with self._tensors.restored(part, specs, tensors):
            self._calibration.advance(part)


def _copied(leaf: Any) -> Any:
    return leaf.clone() if isinstance(leaf, Tensor) else leaf
