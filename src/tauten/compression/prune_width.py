"""Prune the hidden features of a transformer's feed-forward networks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from tauten.compression.structured import kept_channels, prune_groups
from tauten.core.errors import NotApplicableError
from tauten.core.knobs import check_damping, check_fraction, check_multiple
from tauten.core.technique import ShapingTechnique
from tauten.models.calibration import CalibrationBatch
from tauten.models.transformer_groups import feed_forwards, update_sizes


@dataclass(frozen=True)
class PruneWidth(ShapingTechnique):
    """Narrow all feed-forward networks alike, so that a config can express the new width.

    With data those features go whose loss the layer that reads them can make up for best, block
    by block, each on what the pruned blocks before it make; the reading layer is then fitted to
    what is left. Without data features go by the size of their weights.

    Source: ZipLM (Kurtic et al. 2023, arXiv:2302.04089), here without its search for widths.

    Attributes:
        fraction: Of the features that go, above 0 and below 1.
        multiple: Features left are a multiple of it, as kernels like them.
        damping: Added to second moments' diagonals, relative to their means.
    """

    name = "prune_width"
    pillar = "compress"

    fraction: float = 0.25
    multiple: int = 32
    damping: float = 0.01

    def __post_init__(self) -> None:
        check_fraction(self.name, self.fraction)
        check_multiple(self.name, self.multiple)
        check_damping(self.name, self.damping)

    @classmethod
    def space(cls) -> Mapping[str, Sequence[Any]]:
        return {"fraction": (0.125, 0.25, 0.375, 0.5)}

    def reshape(self, model: nn.Module, batches: Sequence[CalibrationBatch]) -> None:
        groups = feed_forwards(model)
        kept = {g: kept_channels(g.size, self.fraction, self.multiple) for g in groups}
        removals = [(group, group.size - kept[group]) for group in groups]
        if not any(count for _, count in removals):
            found = f"widths {sorted({g.size for g in groups})}" if groups else "none known by name"
            raise NotApplicableError(
                f"no feed-forward network to narrow: {found}, with fraction={self.fraction} and "
                f"multiple={self.multiple}"
            )
        prune_groups(model, [r for r in removals if r[1]], batches, self.damping)
        sizes = {(group.size, kept[group]) for group in groups}
        if len(sizes) == 1:
            update_sizes(model, {"intermediate_size": sizes.pop()}, "intermediate_size")
