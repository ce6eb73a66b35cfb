"""Blocks of a student are matched with those of its teacher whose work they should do."""

import copy

import torch
from tiny_models import tiny_cnn, tiny_llama
from torch import nn

from tauten.models.matching import matching_blocks


def ends(student: nn.Module, teacher: nn.Module) -> list[int]:
    pairs = matching_blocks(student, teacher)
    assert [int(ours.rpartition(".")[2]) for ours, _ in pairs] == list(range(len(pairs)))
    return [int(theirs.rpartition(".")[2]) for _, theirs in pairs]


def keeping(teacher: nn.Module, places: list[int]) -> nn.Module:
    student = copy.deepcopy(teacher)
    student.model.layers = nn.ModuleList([student.model.layers[i] for i in places])
    return student


def test_a_surviving_block_ends_where_the_next_one_begins() -> None:
    teacher = tiny_llama(layers=6)
    student = keeping(teacher, [0, 3, 4])
    assert ends(student, teacher) == [2, 3, 5]
    with torch.no_grad():  # as when heads or channels are gone: some weights are others
        for block in student.model.layers:
            block.mlp.gate_proj.weight.mul_(2)
    assert ends(student, teacher) == [2, 3, 5]


def test_blocks_of_another_origin_are_spread_evenly() -> None:
    teacher = tiny_llama(layers=6)
    student = keeping(teacher, [0, 3, 4])
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(0.1)
    assert ends(student, teacher) == [1, 3, 5]
    assert ends(teacher, teacher) == list(range(6))


def test_without_blocks_or_with_more_of_them_nothing_matches() -> None:
    assert matching_blocks(nn.Linear(3, 3), tiny_cnn()) == []
    assert matching_blocks(tiny_llama(layers=4), tiny_llama(layers=3)) == []
