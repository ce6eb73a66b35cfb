"""Let whole blocks use the weights of others that compute nearly the same."""

import copy
import itertools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from tauten.compression.block_chain import BlockChain, check_choice, chosen_count
from tauten.core.errors import InputError, NotApplicableError
from tauten.core.inputs import LayerInputs
from tauten.core.progress import track
from tauten.core.technique import ShapingTechnique
from tauten.models.low_rank_residual import LowRankResidual
from tauten.models.packing import matrix_of, replace_modules
from tauten.models.structure import packable_modules
from tauten.solvers.low_rank import nearest_low_rank


@dataclass(frozen=True)
class ShareLayers(ShapingTechnique):
    """Blocks are tied one at a time to another whose weights then stand for both, stored once.

    Each time the pair is taken with which predictions move least, measured on the model with the
    pairs that are tied already. How near the directions of two blocks' outputs are on the same
    inputs only says which pairs are worth measuring. The model takes less room, and as much time
    as before; train it afterwards (`distill`), which finds weights that serve both places.

    With a rank, a tied block isn't identical to the other: its vectors (norms, biases) stay its
    own, and each linear layer gets a residual U V. The layer computes W x + U (V x), W being
    the other block's; U V is the matrix of that rank nearest to its own W' - W in the layer's
    outputs on the data. Training moves W and both factors. A technique that packs afterwards
    packs W, under the name `LAYER.shared`, once for both; residuals stay as they are.

    Untrained, neither is good: with 6 of SmolLM2-135M's 30 blocks tied the perplexity of 16 is 81,
    97 with rank 32, 55 with rank 128.

    Attributes:
        fraction: Of the blocks that give up their own weights, in (0, 1).
        count: Blocks that give them up; 0 to go by the fraction.
        candidates: Pairs measured for each one tied, with their residuals.
        batches: Of the data that are measured on, 2048 tokens or 64 examples each.
        rank: Of residuals, rank * (in + out) numbers a layer; 0 for none: the blocks are then
            identical. A layer whose residual would be no smaller than its weight keeps that.

    Cost: every block on the inputs of every other once, then count * candidates runs of, on
    average, half the blocks and the head; with a rank also a singular value decomposition of each
    linear layer for each pair that is measured.
    Source: cross-layer sharing is of ALBERT (Lan et al. 2020, arXiv:1909.11942), which trains
    with it from the start; here a trained model's layers are chosen by what tying them costs.
    Residuals: Relaxed Recursive Transformers (Bae et al. 2024, arXiv:2410.20672), which start
    from the singular values of W' - W; here those of its outputs, see `nearest_low_rank`.
    """

    name = "share_layers"
    pillar = "compress"

    fraction: float = 0.25
    count: int = 0
    candidates: int = 8
    batches: int = 1
    rank: int = 0

    def __post_init__(self) -> None:
        check_choice(self.name, self.knobs())
        if not isinstance(self.rank, int) or self.rank < 0:
            raise InputError(f"share_layers: rank={self.rank}: expected 0 or a positive integer")

    def reshape(self, model: nn.Module, batches: Sequence[Any]) -> None:
        chain = BlockChain(model, batches[: self.batches], self.name)
        count = chosen_count(self.name, self.fraction, self.count, len(chain.blocks))
        twins = _Twins(chain, self.rank)
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
        for given_up, kept in worth_measuring(pairs, self.candidates):
            first = owners.index(given_up)
            trial = [kept if owner == given_up else owner for owner in owners]
            trials.append((chain.loss(twins.plan(trial)[first:], states[first]), trial))
        return min(trials)[1]


class _Twins:
    """Blocks of a model with the tensors of others.

    Args:
        chain: The blocks.
        rank: Of what blocks keep of their own weights.
    Attributes:
        nearest: Pairs of a place and the block that may compute there, those first whose outputs
            are nearest if nothing is kept.
    """

    def __init__(self, chain: BlockChain, rank: int):
        self._chain, self._rank = chain, rank
        self._relaxed: dict[tuple[int, int], nn.Module] = {}
        self._states = chain.states(chain.plan)
        sizes = [_sizes(block) for block in chain.blocks]
        distances = {}
        for place, given in enumerate(track(self._states[:-1], "comparing blocks", len(sizes))):
            for owner in range(len(sizes)):
                if owner != place and sizes[owner] == sizes[place]:
                    found = chain.run([(place, tied(*self._pair(place, owner)))], given)
                    distances[place, owner] = output_distance(self._states[place + 1], found)
        self.nearest = sorted(distances, key=lambda pair: distances[pair])

    def of(self, place: int, owner: int) -> nn.Module:
        """The block of a place with the tensors of another."""
        mine, theirs = self._pair(place, owner)
        if owner == place:
            return mine
        if not self._rank:
            return tied(mine, theirs)
        if (place, owner) not in self._relaxed:
            seen = self._chain.observe(place, self._states[place])
            self._relaxed[place, owner] = nearly_tied(mine, theirs, self._rank, seen)
        return self._relaxed[place, owner]

    def plan(self, owners: Sequence[int]) -> list[tuple[int, nn.Module]]:
        """The model with each place's block using the tensors of its owner."""
        return [(place, self.of(place, owner)) for place, owner in enumerate(owners)]

    def _pair(self, place: int, owner: int) -> tuple[nn.Module, nn.Module]:
        return self._chain.blocks[place], self._chain.blocks[owner]


def tied(mine: nn.Module, theirs: nn.Module, kept: Collection[str] = ()) -> nn.Module:
    """A copy of a block with the tensors of another.

    Args:
        mine: The block.
        theirs: One with tensors of the same names and sizes.
        kept: Names of tensors that stay the block's own.
    """
    others = theirs.state_dict(keep_vars=True)
    own = mine.state_dict(keep_vars=True)
    chosen = {id(old): old if name in kept else others[name] for name, old in own.items()}
    return copy.deepcopy(mine, chosen)


def nearly_tied(
    mine: nn.Module, theirs: nn.Module, rank: int, seen: Mapping[str, LayerInputs]
) -> nn.Module:
    """A copy of a block with the matrices of another and low-rank residuals of its own.

    Vectors stay its own, and matrices that would take no more room than their residual.

    Args:
        mine: The block.
        theirs: One with tensors of the same names and sizes.
        rank: Of the residuals of linear layers.
        seen: Inputs of its layers by name; a layer without is fitted as if they were all alike.
    """
    kept = {name for name, old in mine.state_dict(keep_vars=True).items() if old.dim() < 2}
    factors = {}
    for name, layer in packable_modules(mine):
        if not isinstance(layer, nn.Linear | Conv1D):
            continue
        weights = (matrix_of(layer, b.get_parameter(f"{name}.weight")) for b in (mine, theirs))
        change = torch.sub(*(weight.detach().float() for weight in weights))
        if rank * sum(change.shape) >= change.numel():
            kept.add(f"{name}.weight")
        else:
            moment = seen[name].moment if name in seen and seen[name].moment.any() else None
            factors[name] = nearest_low_rank(change, rank, moment)
    if len(kept) == len(mine.state_dict()):
        raise InputError(
            f"share_layers: rank={rank}: no residual would be smaller than the weight it is for; "
            "choose a lower rank"
        )
    block = tied(mine, theirs, kept)
    new_of_old: dict[nn.Module, nn.Module] = {}
    for name, pair in factors.items():
        layer, dtype = block.get_submodule(name), block.get_parameter(f"{name}.weight").dtype
        new_of_old[layer] = LowRankResidual(layer, *(factor.to(dtype) for factor in pair))
    replace_modules(block, new_of_old)
    return block


def output_distance(wanted: Sequence[Tensor], found: Sequence[Tensor]) -> float:
    """Mean of 1 - cos over the vectors of all tokens, or examples: 0 for equal directions.

    How long they are doesn't count: a norm behind them takes it out, and in squared errors the few
    tokens that attention rests on, whose states are the longest by far, would decide alone.

    Args:
        wanted: Batches of what a block makes: (rows, length, features), or any size by examples.
        found: What another makes.
    """
    angles = [
        torch.cosine_similarity(_vectors(w), _vectors(f), dim=1)
        for w, f in zip(wanted, found, strict=True)
    ]
    return 1 - float(torch.cat(angles).mean())


def _vectors(state: Tensor) -> Tensor:
    return (state.flatten(0, 1) if state.dim() == 3 else state.flatten(1)).float()


def worth_measuring(pairs: Sequence[tuple[int, int]], count: int) -> list[tuple[int, int]]:
    """Some pairs, the nearest first: one of each place before the second of any.

    Which place it is matters more to the loss than whose weights come there.
    """
    turns: dict[int, list[tuple[int, int]]] = {}
    for pair in pairs:
        turns.setdefault(pair[0], []).append(pair)
    rounds = itertools.zip_longest(*turns.values())
    return [pair for turn in rounds for pair in turn if pair is not None][:count]


def _sizes(block: nn.Module) -> Any:
    tensors = block.state_dict(keep_vars=True)
    return type(block), {name: tensor.shape for name, tensor in tensors.items()}
