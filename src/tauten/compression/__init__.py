"""Compression: fewer distinct weights, smaller shapes, smaller students.

One file a technique; this registry has a row for each.
"""

from tauten.compression.distill import Distill
from tauten.compression.prune_depth import PruneDepth
from tauten.compression.share_kmeans import ShareKMeans
from tauten.compression.share_layers import ShareLayers
from tauten.core.technique import Technique

__all__ = ["TECHNIQUES", "Distill", "PruneDepth", "ShareKMeans", "ShareLayers"]

TECHNIQUES: dict[str, type[Technique]] = {
    technique.name: technique for technique in (ShareKMeans, ShareLayers, PruneDepth, Distill)
}
