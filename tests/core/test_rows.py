"""The rows of a call are those of its first tensor, or the items of its first list of tensors."""

import torch

from tauten.core.rows import count_rows, cut_rows, has_rows, map_rows

IMAGES = [torch.zeros(3, 4 + n, 5) for n in range(4)]


def test_a_list_of_tensors_has_an_item_a_row() -> None:
    boxes = [{"boxes": torch.zeros(n, 4)} for n in range(1, 5)]
    assert count_rows(((IMAGES,), {})) == count_rows(((IMAGES, boxes), {})) == 4
    assert count_rows(((boxes,), {})) == 4, "the items are trees of tensors"
    assert count_rows(((torch.zeros(2, 3), IMAGES), {})) == 2, "whichever comes first"
    assert count_rows((([1, 2, 3], torch.zeros(2, 3)), {})) == 2, "a list of numbers has none"


def test_lists_are_cut_as_tensors_are() -> None:
    call = ((IMAGES,), {"sizes": torch.arange(4), "names": ["a", "b", "c"]})
    first, rest = cut_rows(call, [1, 3])
    assert first[0][0][0] is IMAGES[0] and all(
        one is other for one, other in zip(rest[0][0], IMAGES[1:], strict=True)
    )
    assert first[1]["sizes"].tolist() == [0] and rest[1]["sizes"].tolist() == [1, 2, 3]
    assert rest[1]["names"] == ["a", "b", "c"], "of another length"
    assert has_rows(IMAGES, 4) and not has_rows(tuple(IMAGES), 4)
    assert len(map_rows(lambda leaf: leaf[:2], call)[0][0]) == 2
