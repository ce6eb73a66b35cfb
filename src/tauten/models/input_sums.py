"""What is summed over the rows that layers see, in an order that any number of machines can keep.

Batches are dealt out to at most `SHARDS` runs of neighbours. Each shard is summed by itself, and
shards are then joined in a fixed binary tree: the sums of machines that hold some of the shards
join to the very bits that one machine gets, however the shards are dealt out. Float addition isn't
associative, so that without such an order machines would differ in the last bits, and rounding of
weights that follows would turn those into other codes.
"""

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from tauten.core.inputs import LayerInputs

SHARDS = 8
MOST_SAMPLED = 512  # rows a layer


def shard_of(number: int, count: int) -> int:
    """The shard of one of so many batches."""
    return number * SHARDS // count if count > SHARDS else number


@dataclass
class InputSums:
    """Sums over rows x (in,) of a layer's inputs; those of a later shard join them.

    Attributes:
        moment: (in, in) float32, of x x^T.
        total: (in,) float32, of x.
        tokens: How many rows.
        peak: (in,) float32, largest |x|; zeros for no rows.
        sample: (rows, in), every `every`-th row of each shard.
        every: Of the shard that is being summed.
        shift: (in, in), of (x of the original - x) x^T; None where that isn't asked for.
        magnitudes: As `LayerInputs.magnitudes`; None as above.
    """

    moment: Tensor
    total: Tensor
    tokens: int
    peak: Tensor
    sample: Tensor
    every: int = 1
    shift: Tensor | None = None
    magnitudes: Tensor | None = None

    @classmethod
    def empty(cls, size: int) -> "InputSums":
        """Of no rows of so many features."""
        zeros = torch.zeros(size, dtype=torch.float32)
        return cls(
            torch.zeros(size, size, dtype=torch.float32),
            zeros,
            0,
            zeros.clone(),
            torch.zeros(0, size, dtype=torch.float32),
        )

    def add(self, rows: Tensor, most_sampled: int) -> None:
        """Rows (n, in) float32 of the same shard."""
        self.moment.addmm_(rows.t(), rows)
        if len(rows):
            self.peak = torch.maximum(self.peak, rows.abs().amax(0))
        self._thin(rows, most_sampled)
        self.tokens += len(rows)
        self.total = self.total + rows.sum(0)

    def add_shift(self, moved: Tensor, rows: Tensor) -> None:
        """How far rows are from the original's, both (n, in)."""
        if self.shift is None:
            self.shift = torch.zeros_like(self.moment)
        self.shift.addmm_(moved.t(), rows)

    def add_magnitudes(self, counts: Tensor) -> None:
        """Counts (32768,) of more values."""
        self.magnitudes = counts if self.magnitudes is None else self.magnitudes + counts

    def join(self, later: "InputSums") -> None:
        """Add the sums of the shards that follow."""
        self.moment += later.moment
        self.total = self.total + later.total
        self.tokens += later.tokens
        self.peak = torch.maximum(self.peak, later.peak)
        self.sample = torch.cat([self.sample, later.sample])
        if later.shift is not None:
            self.shift = later.shift if self.shift is None else self.shift.add_(later.shift)
        if later.magnitudes is not None:
            self.add_magnitudes(later.magnitudes)

    def means(self) -> LayerInputs:
        """Means over the rows."""
        count = self.tokens
        return LayerInputs(
            self.moment / count,
            count,
            None if self.shift is None else self.shift / count,
            self.peak,
            self.sample,
            mean=self.total / count,
            magnitudes=self.magnitudes,
        )

    def _thin(self, rows: Tensor, most: int) -> None:
        """Sample rows, evenly spread over the shard.

        Every third stays each time there are too many: windows often have a length that is a
        power of two, and thirds don't keep to the same positions in them.
        """
        sample = torch.cat([self.sample, rows[-self.tokens % self.every :: self.every]])
        while len(sample) > most:
            self.every, sample = self.every * 3, sample[::3]
        self.sample = sample.clone()


@dataclass
class Node:
    """Sums of `width` neighbouring shards, by layer."""

    first: int
    width: int
    sums: dict[str, InputSums]


class ShardSums:
    """Sums of shards in order, joined as far as the tree allows.

    Attributes:
        owner: By layer, the layer whose sums it shares, as both see the same tensor.
        nodes: In order; neighbours that are the two halves of a node of the tree were joined.
    """

    def __init__(self, owner: dict[str, str] | None = None, nodes: Iterable[Node] = ()):
        self.owner: dict[str, str] = {} if owner is None else owner
        self.nodes: list[Node] = []
        for node in nodes:
            self.push(node)

    def push(self, node: Node) -> None:
        """Add the shards that follow."""
        self.nodes.append(node)
        while len(self.nodes) > 1 and _are_halves(*self.nodes[-2:]):
            self._join_last()

    def inputs(self) -> dict[str, LayerInputs]:
        """Means by layer, of all shards; layers that no token reached are missing."""
        while len(self.nodes) > 1:
            self._join_last()
        sums = self.nodes[0].sums if self.nodes else {}
        means = {name: found.means() for name, found in sums.items() if found.tokens}
        return {name: means[owner] for name, owner in self.owner.items() if owner in means}

    def _join_last(self) -> None:
        later = self.nodes.pop()
        earlier = self.nodes[-1]
        for name, sums in later.sums.items():
            if name in earlier.sums:
                earlier.sums[name].join(sums)
            else:
                earlier.sums[name] = sums
        earlier.width += later.width

    def tree(self) -> dict[str, Any]:
        """As tensors, numbers and strings, for another machine."""
        nodes = [
            {"first": node.first, "width": node.width, "sums": _plain(node.sums)}
            for node in self.nodes
        ]
        return {"owner": self.owner, "nodes": nodes}

    @classmethod
    def of_trees(cls, trees: Iterable[dict[str, Any]]) -> "ShardSums":
        """All that several machines have summed; in the order of their shards."""
        joined = cls()
        for tree in trees:
            joined.owner = tree["owner"] | joined.owner
            for raw in tree["nodes"]:
                sums = {name: InputSums(**values) for name, values in raw["sums"].items()}
                joined.push(Node(raw["first"], raw["width"], sums))
        return joined


def _are_halves(one: Node, other: Node) -> bool:
    """Whether two nodes are the halves of one node of the tree."""
    adjacent = one.first + one.width == other.first
    return adjacent and one.width == other.width and one.first % (2 * one.width) == 0


def _plain(sums: dict[str, InputSums]) -> dict[str, dict[str, Any]]:
    names = [field.name for field in fields(InputSums)]
    return {key: {name: getattr(found, name) for name in names} for key, found in sums.items()}
