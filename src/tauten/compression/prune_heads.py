"""Prune attention heads; with grouped queries each key keeps as many queries as any other."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from tauten.compression.structured import prune_groups
from tauten.core.errors import InputError, NotApplicableError
from tauten.core.knobs import check_damping, check_fraction
from tauten.core.technique import ShapingTechnique
from tauten.models.calibration import CalibrationBatch
from tauten.models.channel_groups import ChannelGroup
from tauten.models.transformer_groups import Attention, attentions, set_heads, update_sizes


@dataclass(frozen=True)
class PruneHeads(ShapingTechnique):
    """Remove heads from all attentions alike, so that a config can express what is left.

    With data those go whose loss the output layer can make up for best, block by block, each on
    what the pruned blocks before it make; the output layer is then fitted to the heads left.
    Without data heads go by the size of their weights.

    Source: ZipLM (Kurtic et al. 2023, arXiv:2302.04089), here also for keys shared by queries.

    Attributes:
        fraction: Of the heads that go, above 0 and below 1; rounded to what `unit` allows, at
            least one.
        unit: `group` removes a key and value with all queries that they serve, which also
            shrinks the cache; `query` removes equally many queries of every key.
        damping: Added to second moments' diagonals, relative to their means.
    """

    name = "prune_heads"
    pillar = "compress"

    fraction: float = 0.25
    unit: str = "group"
    damping: float = 0.01

    def __post_init__(self) -> None:
        check_fraction(self.name, self.fraction)
        check_damping(self.name, self.damping)
        if self.unit not in ("group", "query"):
            raise InputError(f"prune_heads: unit={self.unit!r}: expected group or query")

    @classmethod
    def space(cls) -> Mapping[str, Sequence[Any]]:
        return {"fraction": (0.125, 0.25, 0.5), "unit": ("group", "query")}

    def reshape(self, model: nn.Module, batches: Sequence[CalibrationBatch]) -> None:
        found = attentions(model)
        if not found:
            raise NotApplicableError(
                "no attention that is known by the names of its layers: q_proj, k_proj, v_proj "
                "and o_proj as in Llama, or query, key, value and output.dense as in BERT"
            )
        left = [(a, *self._left(a)) for a in found]
        units = [a.queries() if self.unit == "query" else a.whole_groups() for a in found]
        changes = dict(zip(units, left, strict=True))
        removals = [
            (group, group.size - (heads if self.unit == "query" else kv_heads))
            for group, (_, heads, kv_heads) in changes.items()
        ]

        def note(group: ChannelGroup) -> None:
            set_heads(model, *changes[group])

        prune_groups(model, removals, batches, self.damping, note=note)
        sizes = {(a.heads, heads, a.kv_heads, kv_heads) for a, heads, kv_heads in left}
        if len(sizes) == 1:
            old, heads, old_kv, kv_heads = sizes.pop()
            counts = {"num_attention_heads": (old, heads)}
            counts["num_key_value_heads"] = old_kv, kv_heads
            update_sizes(model, counts, "head_dim")

    def _left(self, attention: Attention) -> tuple[int, int]:
        """Heads, and key heads, that are left."""
        heads, kv_heads = attention.heads, attention.kv_heads
        served = heads // kv_heads
        choices = served if self.unit == "query" else kv_heads
        removed = max(1, round(self.fraction * choices))
        if removed >= choices:
            what = f"{heads} heads on {kv_heads} keys"
            raise NotApplicableError(
                f"{attention.holder} has {what}: fraction={self.fraction} with unit={self.unit} "
                "would leave none"
            )
        if self.unit == "query":
            return (served - removed) * kv_heads, kv_heads
        return (kv_heads - removed) * served, kv_heads - removed
