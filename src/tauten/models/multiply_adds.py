"""How many multiply-adds a call of a network takes, whole or with channels removed."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tauten.models.calibration import CalibrationBatch
from tauten.models.channel_groups import LAYERS, ChannelGroup, width
from tauten.models.packing import matrix_of


class MultiplyAdds:
    """Multiply-adds of linear layers and convolutions in one call of a model.

    Args:
        model: Isn't changed.
        batch: The call.
    Attributes:
        counts: By name of the layer.
    """

    def __init__(self, model: nn.Module, batch: CalibrationBatch):
        self.counts: dict[str, int] = {}
        self._widths: dict[tuple[str, str], int] = {}
        layers = {name: m for name, m in model.named_modules() if type(m) in LAYERS}
        hooks = [layer.register_forward_hook(self._hook(name)) for name, layer in layers.items()]
        try:
            with torch.inference_mode():
                batch.call(model)
        finally:
            for hook in hooks:
                hook.remove()
        for name, layer in layers.items():
            self._widths[name, "out"] = self._widths[name, "both"] = width(layer, "out")
            self._widths[name, "in"] = width(layer, "in")

    @property
    def total(self) -> int:
        """Of all layers."""
        return sum(self.counts.values())

    def left(self, groups: Sequence[ChannelGroup], removed: Sequence[int]) -> float:
        """What is left of the total when each group has lost so many channels."""
        lost: dict[tuple[str, str], int] = {}
        for group, count in zip(groups, removed, strict=True):
            for member in group.members:
                key = member.module, member.side
                lost[key] = lost.get(key, 0) + count * member.span
        left: dict[str, float] = dict(self.counts)
        for (name, side), features in lost.items():
            if name in left:
                left[name] *= 1 - features / self._widths[name, side]
        return sum(left.values())

    def _hook(self, name: str) -> Any:
        def hook(layer: Any, args: tuple[Any, ...], output: Tensor) -> None:
            rows = matrix_of(layer, layer.weight)
            calls = output.numel() // len(rows) * rows.numel()
            self.counts[name] = self.counts.get(name, 0) + calls

        return hook
