"""Compression: fewer distinct weights, smaller students. One file a technique; this registry has a
row for each.
"""

from tauten.compression.distill import Distill
from tauten.compression.prune_channels import PruneChannels
from tauten.compression.prune_depth import PruneDepth
from tauten.compression.prune_heads import PruneHeads
from tauten.compression.prune_magnitude import PruneMagnitude
from tauten.compression.prune_sparsegpt import PruneSparseGPT
from tauten.compression.prune_wanda import PruneWanda
from tauten.compression.prune_width import PruneWidth
from tauten.compression.share_kmeans import ShareKMeans
from tauten.compression.share_layers import ShareLayers
from tauten.compression.share_rows import ShareRows
from tauten.core.technique import Technique

__all__ = [
    "TECHNIQUES",
    "Distill",
    "PruneChannels",
    "PruneDepth",
    "PruneHeads",
    "PruneMagnitude",
    "PruneSparseGPT",
    "PruneWanda",
    "PruneWidth",
    "ShareKMeans",
    "ShareLayers",
    "ShareRows",
]

TECHNIQUES: dict[str, type[Technique]] = {
    technique.name: technique
    for technique in (
        ShareKMeans,
        ShareRows,
        ShareLayers,
        PruneMagnitude,
        PruneWanda,
        PruneSparseGPT,
        PruneChannels,
        PruneWidth,
        PruneHeads,
        PruneDepth,
        Distill,
    )
}
