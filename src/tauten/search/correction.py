"""Correct estimated losses of layers by true divergences of a few groups of them.

Estimates are right about which of two like layers minds more, but not about layers of different
kinds: errors of some are averaged away by attention, those of others reach the answers whole. The
divergence of a group by itself is one measurement, and divergences of groups add up, so that a few
of them tell by how much each kind and each depth was misjudged.
"""

import re
from collections.abc import Callable, Mapping, Sequence

from tauten.core.progress import track
from tauten.models.structure import Structure

MOST_KINDS = 16  # a model with more has no kinds to speak of
DEPTHS = 6  # runs of neighbouring blocks
ROUNDS = 20
MOST_FACTOR = 8.0

Probe = Callable[[Sequence[str]], float | None]


def groups_of(layers: Sequence[str], structure: Structure) -> list[list[str]]:
    """Layers by their kind, and by their depth; none where there are too many kinds.

    Args:
        layers: By name, one of those that are tied.
        structure: Of the model.
    """
    kinds: dict[str, list[str]] = {}
    depths: dict[int, list[str]] = {}
    place = {block: number for number, block in enumerate(structure.blocks)}
    for name in layers:
        kinds.setdefault(re.sub(r"\d+", "*", name), []).append(name)
        block = structure.block_of(name)
        if block in place:
            depths.setdefault(place[block] * DEPTHS // len(place), []).append(name)
    if not 2 <= len(kinds) <= MOST_KINDS or len(layers) < 2 * len(kinds):
        return []
    return [*kinds.values(), *(depths.values() if len(place) >= DEPTHS else ())]


def correction(losses: Mapping[str, float], structure: Structure, probe: Probe) -> dict[str, float]:
    """What to multiply the estimated loss of each layer by, at whatever level.

    Args:
        losses: Estimated of each layer, at the level that is probed.
        structure: Of the model.
        probe: True KL of some layers packed at that level, all else as in the original; None
            where it can't be had.
    Returns:
        By layer; empty where nothing could be measured.
    Source: iterative proportional fitting, Deming and Stephan 1940.
    """
    groups = groups_of(list(losses), structure)
    measured: list[tuple[list[str], float]] = []
    for group in track(groups, "measuring groups of layers", len(groups)):
        kl = probe(group)
        if kl is None:
            return {}
        measured.append((group, kl))
    found = dict(losses)
    for _ in range(ROUNDS):
        for group, kl in measured:
            total = sum(found[name] for name in group)
            if total > 0 and kl > 0:
                found |= {name: found[name] * kl / total for name in group}
    factors = {name: found[name] / loss for name, loss in losses.items() if loss > 0}
    return {n: min(max(f, 1 / MOST_FACTOR), MOST_FACTOR) for n, f in factors.items()}
