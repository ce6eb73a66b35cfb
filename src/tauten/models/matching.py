"""Which blocks of a teacher the blocks of a smaller student should do the work of."""

import torch
from torch import nn

from tauten.models.structure import find_structure


def matching_blocks(student: nn.Module, teacher: nn.Module) -> list[tuple[str, str]]:
    """Pairs of blocks whose outputs should be equal.

    A student's block stands for the teacher's blocks up to the next one that survived, because
    its output is what that next one is used to. Surviving blocks are known by a weight that they
    still share with the teacher's; where that doesn't tell, the student's blocks are spread evenly.

    Args:
        student: Not trained yet.
        teacher: Has as many blocks or more.
    Returns:
        Names in the student and in the teacher, in order; empty where either has no blocks or the
        student has more.
    """
    ours, theirs = find_structure(student).blocks, find_structure(teacher).blocks
    if not ours or len(ours) > len(theirs):
        return []
    survived = _surviving(
        [student.get_submodule(name) for name in ours],
        [teacher.get_submodule(name) for name in theirs],
    )
    if survived is None:
        ends = [(place + 1) * len(theirs) // len(ours) for place in range(len(ours))]
    else:
        ends = [*survived[1:], len(theirs)]
    return [(name, theirs[end - 1]) for name, end in zip(ours, ends, strict=True)]


def _surviving(ours: list[nn.Module], theirs: list[nn.Module]) -> list[int] | None:
    """The place in the teacher that each block has come from, in rising order; None if unknown."""
    places: list[int] = []
    for block in ours:
        start = places[-1] + 1 if places else 0
        later = range(start, len(theirs))
        found = next((place for place in later if _share_a_weight(block, theirs[place])), None)
        if found is None:
            return None
        places.append(found)
    return places


def _share_a_weight(one: nn.Module, other: nn.Module) -> bool:
    """Whether a matrix stands in both under one name; norms and biases may be equal by chance."""
    known = dict(other.named_parameters())
    return any(
        parameter.dim() > 1 and name in known and torch.equal(parameter, known[name])
        for name, parameter in one.named_parameters()
    )
