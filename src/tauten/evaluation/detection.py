"""Agreement of the boxes that a detector finds with what it should find."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tauten.core.errors import InputError
from tauten.data.tensors import call_model
from tauten.evaluation.metrics import Mean

CERTAIN = 0.5  # score from which a box counts as found
OVERLAP = 0.5  # intersection over union from which two boxes are the same
Boxes = Mapping[str, Tensor]


class BoxF1(Mean):
    """F1 of the boxes of each image, beside targets or what the original finds.

    Boxes (x0, y0, x1, y1) agree where they have the same label and overlap by half (intersection
    over union), each with one at most. Found is what has a score of at least a half. An image
    without boxes on either side counts 1.
    """

    name = "box_f1"
    meaning = "F1 of boxes by image, overlap from 0.5 on"

    def __init__(self) -> None:
        self._wanted: list[Sequence[Boxes]] = []

    def prepare(self, original: nn.Module, batches: Sequence[Any]) -> None:
        with torch.inference_mode():
            self._wanted = [_wanted(original, batch) for batch in batches]
        if not any(len(boxes["boxes"]) for images in self._wanted for boxes in images):
            raise InputError(
                f"{self.name}: there is no box in any image, neither in targets nor found with a "
                f"score of {CERTAIN}: pass data with boxes, or metric=tauten.Metric(function)"
            )

    def score(self, model: nn.Module, batch: Any, index: int) -> Tensor:
        found = [_certain(boxes) for boxes in call_model(model, batch)]
        pairs = zip(found, self._wanted[index], strict=True)
        return torch.tensor([f1(*pair) for pair in pairs], dtype=torch.float64)


def is_boxes(value: Any) -> bool:
    """Whether it is a list of images, a dict with boxes each."""
    return (
        isinstance(value, list | tuple)
        and len(value) > 0
        and all(isinstance(image, Mapping) and "boxes" in image for image in value)
    )


def f1(found: Boxes, wanted: Boxes) -> float:
    """F1 of the boxes of an image; those found with the highest score choose first."""
    counts = len(found["boxes"]), len(wanted["boxes"])
    if not any(counts):
        return 1.0
    overlap = overlaps(found["boxes"], wanted["boxes"])
    overlap = overlap * (overlap >= OVERLAP)
    if "labels" in found and "labels" in wanted:
        overlap = overlap * (found["labels"][:, None] == wanted["labels"])
    agreed = 0
    for row in found["scores"].argsort(descending=True) if "scores" in found else range(counts[0]):
        if counts[1] and overlap[row].max() > 0:
            agreed += 1
            overlap[:, overlap[row].argmax()] = 0
    return 2 * agreed / sum(counts)


def overlaps(one: Tensor, other: Tensor) -> Tensor:
    """(n, m) intersection over union of (n, 4) and (m, 4) boxes."""
    low = torch.maximum(one[:, None, :2], other[None, :, :2])
    high = torch.minimum(one[:, None, 2:], other[None, :, 2:])
    both = (high - low).clamp(min=0).prod(-1)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(-1) for boxes in (one, other)]
    return both / (areas[0][:, None] + areas[1] - both).clamp(min=1e-12)


def _wanted(original: nn.Module, batch: Any) -> Sequence[Boxes]:
    targets = batch[1] if isinstance(batch, tuple) and len(batch) == 2 else None
    if targets is not None and is_boxes(targets):
        return [*targets]
    return [_certain(boxes) for boxes in call_model(original, batch)]


def _certain(boxes: Boxes) -> Boxes:
    if "scores" not in boxes:
        return boxes
    return {key: value[boxes["scores"] >= CERTAIN] for key, value in boxes.items()}
