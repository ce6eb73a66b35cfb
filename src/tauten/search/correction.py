"""Correct the losses of a level table by true divergences of a few groups of layers.

Estimates are right about which of two like layers minds more, but not about layers of different
kinds: errors of some are averaged away by attention, those of others reach the answers whole. The
divergence of a group by itself is one measurement, and divergences of groups add up, so that a few
of them tell by how much each kind and each depth was misjudged.
"""

import re
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from tauten.models.structure import Structure
from tauten.search.levels import LevelTable

MOST_KINDS = 16  # a model with more has no kinds to speak of
DEPTHS = 6  # runs of neighbouring blocks
ROUNDS = 20
MOST_FACTOR = 8.0


def groups_of(table: LevelTable, structure: Structure) -> list[list[int]]:
    """Units by their kind, and by their depth; none where there are too many kinds.

    Args:
        table: Of the model.
        structure: Of the model.
    Returns:
        Indices of units, a list a group.
    """
    kinds: dict[str, list[int]] = {}
    depths: dict[int, list[int]] = {}
    place = {block: number for number, block in enumerate(structure.blocks)}
    for index, names in enumerate(table.units):
        kinds.setdefault(re.sub(r"\d+", "*", names[-1]), []).append(index)
        block = structure.block_of(names[-1])
        if block in place:
            depths.setdefault(place[block] * DEPTHS // len(place), []).append(index)
    if not 2 <= len(kinds) <= MOST_KINDS or len(table.units) < 2 * len(kinds):
        return []
    return [*kinds.values(), *(depths.values() if len(place) >= DEPTHS else ())]


def corrected(
    table: LevelTable, level: int, groups: Sequence[Sequence[int]], kls: Sequence[float]
) -> LevelTable:
    """A table whose losses at one level add up to what groups of units truly lose.

    Each unit gets one factor for all levels; what levels lose as a whole stays.

    Args:
        table: To correct.
        level: That groups were measured at.
        groups: Units of each.
        kls: KL of each group at that level, all else as in the original.
    Source: iterative proportional fitting, Deming and Stephan 1940.
    """
    old = table.losses[:, level]
    found = old.clone()
    for _ in range(ROUNDS):
        for group, kl in zip(groups, kls, strict=True):
            members = torch.tensor(group)
            total = float(found[members].sum())
            if total > 0 and kl > 0:
                found[members] *= kl / total
    factor = torch.where(old > 0, found / old.clamp(min=1e-30), 1.0)
    factor = factor.clamp(1 / MOST_FACTOR, MOST_FACTOR)
    losses: Tensor = table.losses * factor[:, None]
    before, after = table.losses.sum(0), losses.sum(0)
    return replace(table, losses=losses * torch.where(after > 0, before / after, 1.0))
