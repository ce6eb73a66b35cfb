"""Let whole blocks use the weights of others that compute nearly the same."""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tauten.compression.block_chain import BlockChain, check_choice, chosen_count
from tauten.core.errors import NotApplicableError
from tauten.core.progress import track
from tauten.core.technique import ShapingTechnique


@dataclass(frozen=True)
class ShareLayers(ShapingTechnique):
    """Blocks are tied one at a time to another whose weights then stand for both, stored once.

    Each time the pair is taken with which predictions move least, measured on the model with the
    pairs that are tied already. How near the outputs of two blocks are on the same inputs only
    says which pairs are worth measuring. The model computes as much as before and takes less
    room; train it afterwards (`distill`), which finds weights that serve both places.

    Attributes:
        fraction: Of the blocks that give up their own weights, in (0, 1).
        count: Blocks that give them up; 0 to go by the fraction.
        candidates: Pairs measured for each one tied.
        batches: Of the data that are measured on, 2048 tokens or 64 examples each.

    Cost: every block on the inputs of every other once, then count * candidates runs of, on
    average, half the blocks and the head.
    Source: cross-layer sharing is of ALBERT (Lan et al. 2020, arXiv:1909.11942), which trains
    with it from the start; here a trained model's layers are chosen by what tying them costs.
    """

    name = "share_layers"
    pillar = "compress"

    fraction: float = 0.25
    count: int = 0
    candidates: int = 8
    batches: int = 1

    def __post_init__(self) -> None:
        check_choice(self.name, self.knobs())

    def reshape(self, model: nn.Module, batches: Sequence[Any]) -> None:
        chain = BlockChain(model, batches[: self.batches], self.name)
        count = chosen_count(self.name, self.fraction, self.count, len(chain.blocks))
        twins = _Twins(chain)
        owners = list(range(len(chain.blocks)))  # whose weights each place uses
        for _ in track(range(count), "tying blocks", count):
            owners = self._with_one_less(chain, twins, owners)
        for place, block in twins.plan(owners):
            model.set_submodule(chain.names[place], block)

    def _with_one_less(self, chain: BlockChain, twins: "_Twins", owners: list[int]) -> list[int]:
        """The owners when all that use the weights of one use those of another."""
        pairs = [(a, b) for a, b in twins.nearest if owners[a] == a and owners[b] == b]
        if not pairs:
            raise NotApplicableError(
                f"share_layers: no two of the {len(set(owners))} blocks that are left have tensors "
                "of the same sizes; choose fewer"
            )
        states = chain.states(twins.plan(owners))
        trials = []
        for given_up, kept in pairs[: self.candidates]:
            first = owners.index(given_up)
            trial = [kept if owner == given_up else owner for owner in owners]
            trials.append((chain.loss(twins.plan(trial)[first:], states[first]), trial))
        return min(trials)[1]


class _Twins:
    """Blocks of a model with the tensors of others.

    Attributes:
        nearest: Pairs of a place and the block that may compute there, those first whose outputs
            are nearest.
    """

    def __init__(self, chain: BlockChain):
        self._chain = chain
        sizes = [_sizes(block) for block in chain.blocks]
        states = chain.states(chain.plan)
        distances = {}
        for place, given in enumerate(track(states[:-1], "comparing blocks", len(sizes))):
            for owner in range(len(sizes)):
                if owner != place and sizes[owner] == sizes[place]:
                    found = chain.run([(place, self.of(place, owner))], given)
                    distances[place, owner] = output_distance(given, states[place + 1], found)
        self.nearest = sorted(distances, key=lambda pair: distances[pair])

    def of(self, place: int, owner: int) -> nn.Module:
        """The block of a place with the tensors of another."""
        mine, theirs = self._chain.blocks[place], self._chain.blocks[owner]
        pairs = zip(_tensors(mine), _tensors(theirs), strict=True)
        return mine if owner == place else copy.deepcopy(mine, {id(a): b for a, b in pairs})

    def plan(self, owners: Sequence[int]) -> list[tuple[int, nn.Module]]:
        """The model with each place's block using the tensors of its owner."""
        return [(place, self.of(place, owner)) for place, owner in enumerate(owners)]


def output_distance(
    given: Sequence[Tensor], wanted: Sequence[Tensor], found: Sequence[Tensor]
) -> float:
    """|found - wanted| / |wanted - given|: 1 is as far off as doing nothing would be.

    Args:
        given: Batches of what a block is given, any size.
        wanted: What it makes.
        found: What another makes.
    """
    done = [w - g if w.shape == g.shape else w for w, g in zip(wanted, given, strict=True)]
    lost = [f - w for f, w in zip(found, wanted, strict=True)]
    smallest = torch.finfo(torch.float32).tiny  # a block that does nothing at all
    return math.sqrt(_energy(lost) / max(_energy(done), smallest))


def _energy(tensors: Sequence[Tensor]) -> float:
    return float(torch.stack([tensor.float().square().sum() for tensor in tensors]).sum())


def _tensors(block: nn.Module) -> list[Tensor]:
    """Parameters and buffers that are saved."""
    return list(block.state_dict(keep_vars=True).values())


def _sizes(block: nn.Module) -> Any:
    tensors = block.state_dict(keep_vars=True)
    return type(block), {name: tensor.shape for name, tensor in tensors.items()}
