"""Prune channels of a network of convolutions and linear layers, skip connections included."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from tauten.compression.structured import Pruning, kept_channels, observed, prune_groups
from tauten.core.errors import InputError, NotApplicableError
from tauten.core.knobs import check_damping, check_fraction, check_multiple
from tauten.core.technique import ShapingTechnique
from tauten.models.calibration import CalibrationBatch
from tauten.models.channel_graph import ChannelGraph, channel_graph
from tauten.models.multiply_adds import MultiplyAdds
from tauten.solvers.channel_importance import allocate


@dataclass(frozen=True)
class PruneChannels(ShapingTechnique):
    """Narrow every layer whose width nothing outside of the model sees.

    Which channels belong together is traced (`models.channel_graph`). With data those go whose
    loss the layers that read them can make up for best, and these layers are then fitted to the
    channels that are left; without data channels go by the size of their weights.

    Source: groups as in DepGraph (Fang et al. 2023, arXiv:2301.12900), choice as in ZipLM (Kurtic
    et al. 2023, arXiv:2302.04089), here over all readers of a channel, convolutions too.

    Attributes:
        fraction: Of the channels that go, above 0 and below 1. Multiply-adds between two narrowed
            layers fall by the square of what stays: 0.5 leaves about a quarter of them.
        by: `layer` takes the same fraction of each group; `importance`, which needs data, takes
            channels where least is lost for each multiply-add saved, until no more than
            (1 - fraction)^2 of the multiply-adds are left.
        multiple: Channels left by `layer`, and those taken by `importance`, are a multiple of it:
            kernels like 8; 1 for exact fractions.
        damping: Added to second moments' diagonals, relative to their means.
    """

    name = "prune_channels"
    pillar = "compress"

    fraction: float = 0.5
    by: str = "layer"
    multiple: int = 8
    damping: float = 0.01

    def __post_init__(self) -> None:
        check_fraction(self.name, self.fraction)
        check_multiple(self.name, self.multiple)
        check_damping(self.name, self.damping)
        if self.by not in ("layer", "importance"):
            raise InputError(f"prune_channels: by={self.by!r}: expected layer or importance")

    @classmethod
    def space(cls) -> Mapping[str, Sequence[Any]]:
        return {"fraction": (0.125, 0.25, 0.375, 0.5, 0.625), "by": ("layer", "importance")}

    def reshape(self, model: nn.Module, batches: Sequence[CalibrationBatch]) -> None:
        graph = channel_graph(model)
        if self.by == "importance":
            self._prune_by_importance(model, graph, batches)
            return
        removals = []
        for group in graph.groups:
            kept = kept_channels(group.size, self.fraction, self.multiple, group.parts)
            if kept < group.size:
                removals.append((group, group.size - kept))
        self._check_some(removals, graph)
        prune_groups(model, removals, batches, self.damping, graph.norms)

    def _prune_by_importance(
        self, model: nn.Module, graph: ChannelGraph, batches: Sequence[CalibrationBatch]
    ) -> None:
        if not batches:
            raise InputError("prune_channels: by=importance needs data; pass some, or by=layer")
        steps = [self.multiple * group.parts for group in graph.groups]
        pairs = [(g, step) for g, step in zip(graph.groups, steps, strict=True) if step < g.size]
        self._check_some(pairs, graph)
        groups = [group for group, _ in pairs]
        cost = MultiplyAdds(model, batches[0])
        pruning = Pruning(model, observed(model, groups, batches), self.damping, graph.norms)
        found = [pruning.removal(g, (g.size - 1) // step * step) for g, step in pairs]
        counts = allocate(
            [removal.losses for removal in found],
            [step for _, step in pairs],
            lambda removed: cost.left(groups, removed),
            (1 - self.fraction) ** 2 * cost.total,
        )
        orders = [removal.order[:count] for removal, count in zip(found, counts, strict=True)]
        pruning.remove(list(zip(groups, orders, strict=True)))

    def _check_some(self, found: Sequence[Any], graph: ChannelGraph) -> None:
        if not found:
            sizes = sorted({group.size for group in graph.groups})
            raise NotApplicableError(
                f"no channels to prune: groups of {sizes or 'no'} channels stay as they are with "
                f"fraction={self.fraction} and multiple={self.multiple}"
            )
