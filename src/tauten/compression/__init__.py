"""Compression: fewer distinct weights, smaller students. One file a technique; this registry has a
row for each.
"""

from tauten.compression.distill import Distill
from tauten.compression.prune_channels import PruneChannels
from tauten.compression.prune_heads import PruneHeads
from tauten.compression.prune_width import PruneWidth
from tauten.compression.share_kmeans import ShareKMeans
from tauten.core.technique import Technique

__all__ = ["TECHNIQUES", "Distill", "PruneChannels", "PruneHeads", "PruneWidth", "ShareKMeans"]

TECHNIQUES: dict[str, type[Technique]] = {
    technique.name: technique
    for technique in (ShareKMeans, PruneChannels, PruneWidth, PruneHeads, Distill)
}
