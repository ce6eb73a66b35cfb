"""Small trained models of many kinds, worlds that data for them is drawn from, and plain figures.

Each figure is written anew here, as a loop over what a model returns, and looks at nothing of
Tauten's: it says what is true of a model.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from scipy.stats import spearmanr
from torch import Tensor, nn
from transformers.modeling_outputs import ModelOutput

WIDTH, STEPS = 16, 400
Figure = Callable[[nn.Module, nn.Module, Any], float]


@dataclass(frozen=True)
class World:
    """A model, and where its data comes from.

    Attributes:
        draw: (examples, seed) -> one batch of independent examples.
        figure: (model, original, batch) -> what is true of a model.
        batches: A batch as what is passed to Tauten.
    """

    model: nn.Module
    draw: Callable[[int, int], Any]
    figure: Figure
    batches: Callable[[Any], list[Any]] = lambda batch: [batch]


class Body(nn.Module):
    """Two layers, and something done with what they return."""

    def __init__(self, outputs: int, end: Callable[[Tensor], Any] = lambda y: y):
        super().__init__()
        self.first, self.second, self.end = nn.Linear(WIDTH, 64), nn.Linear(64, outputs), end

    def raw(self, x: Tensor) -> Tensor:
        return self.second(torch.relu(self.first(x)))

    def forward(self, x: Tensor, **others: Any) -> Any:
        return self.end(self.raw(x))


class Labelled(Body):
    """Called with labels, as transformers' classifiers are."""

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Any:  # type: ignore[override]
        logits = self.raw(x)
        loss = None if labels is None else F.cross_entropy(logits, labels)
        return ModelOutput(loss=loss, logits=logits)


class Losses(Body):
    """Returns nothing but losses: how well it tells its input's sum and spread."""

    def forward(self, x: Tensor, **others: Any) -> Any:
        y = self.raw(x)
        told = x.sum(1) / 4, x.square().mean(1)
        return {name: F.mse_loss(y[:, i], told[i]) for i, name in enumerate(("sum", "spread"))}


class Tagger(nn.Module):
    """Classes of tokens, by those beside them."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.mix = nn.Embedding(40, WIDTH), nn.Conv1d(WIDTH, 48, 3, padding=1)
        self.head = nn.Linear(48, 5)

    def forward(self, ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        x = self.embed(ids) * (1 if attention_mask is None else attention_mask[..., None])
        return self.head(torch.relu(self.mix(x.mT)).mT)


class Detector(nn.Module):
    """Boxes of squares in an image of 4 x 4 cells; images come as a list."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(16 * 16, 64), nn.Linear(64, 16)

    def raw(self, images: Tensor) -> Tensor:
        return self.second(torch.relu(self.first(images.flatten(1))))

    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        return [_boxes(scores) for scores in self.raw(torch.stack(images)).sigmoid()]


def _boxes(scores: Tensor) -> dict[str, Tensor]:
    places = torch.arange(16)
    corner = torch.stack([places % 4, places // 4], 1) * 4.0
    kept = scores > 0.2
    labels = torch.ones(int(kept.sum()), dtype=torch.int64)
    boxes = torch.cat([corner, corner + 4], 1)[kept]
    return {"boxes": boxes, "labels": labels, "scores": scores[kept]}


def fit(
    model: nn.Module, draw: Callable[[int], tuple[Any, ...]], loss: Callable[..., Tensor]
) -> Any:
    """Train a model on what is drawn anew in each step."""
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for step in range(STEPS):
        optimizer.zero_grad()
        loss(model, *draw(10_000 + step)).backward()
        optimizer.step()
    return model.eval().requires_grad_(False)


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@cache
def teacher(outputs: int) -> nn.Module:
    torch.manual_seed(outputs)
    return nn.Sequential(nn.Linear(WIDTH, 12), nn.Tanh(), nn.Linear(12, outputs)).requires_grad_(
        False
    )


def told(x: Tensor, outputs: int, seed: int, noise: float = 0.1) -> Tensor:
    """What the teacher says of inputs, with noise."""
    return teacher(outputs)(x) + noise * normal(seed + 1, len(x), outputs)


def classes() -> World:
    def draw(n: int, seed: int) -> tuple[Tensor, Tensor]:
        x = normal(seed, n, WIDTH)
        return x, told(x, 4, seed).argmax(1)

    torch.manual_seed(0)
    model = fit(Body(4), lambda s: draw(128, s), lambda m, x, y: F.cross_entropy(m(x), y))
    return World(model, draw, lambda m, _, b: float((m(b[0]).argmax(1) == b[1]).double().mean()))


def one_output(end: Callable[[Tensor], Tensor], bound: float, labels: int = 1) -> World:
    """Labels of 0 and 1, an output for each."""

    def draw(n: int, seed: int) -> tuple[Tensor, Tensor]:
        x = normal(seed, n, WIDTH)
        y = (told(x, labels, seed) > 0).long()
        return x, y if labels > 1 else y[:, 0]

    def loss(model: Body, x: Tensor, y: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(model.raw(x).view(y.shape), y.float())

    def figure(model: nn.Module, _: nn.Module, batch: Any) -> float:
        answers = (model(batch[0]) > bound).view(batch[1].shape)
        return float((answers == batch[1]).double().mean())

    torch.manual_seed(0)
    return World(fit(Body(labels, end), lambda s: draw(128, s), loss), draw, figure)


def numbers(outputs: int) -> World:
    def draw(n: int, seed: int) -> tuple[Tensor, Tensor]:
        x = normal(seed, n, WIDTH)
        return x, told(x, outputs, seed)

    def figure(model: nn.Module, _: nn.Module, batch: Any) -> float:
        y = batch[1].double()
        return float(1 - ((model(batch[0]) - y).square() / y.var(0)).mean())

    torch.manual_seed(0)
    model = fit(Body(outputs), lambda s: draw(128, s), lambda m, x, y: F.mse_loss(m(x), y))
    return World(model, draw, figure)


def unlabelled(world: World, figure: Figure) -> World:
    """The inputs alone; what is right is what the original says."""
    return World(world.model, lambda n, seed: world.draw(n, seed)[0], figure)


def cosine(model: nn.Module, original: nn.Module, x: Tensor) -> float:
    return float(F.cosine_similarity(model(x), original(x)).double().mean())


def explained(model: nn.Module, original: nn.Module, x: Tensor) -> float:
    y = original(x).double()
    return float(1 - (model(x) - y).square().mean() / y.var())


def tokens(masked: bool) -> World:
    """Sentences of 4 to 12 tokens; padding has the label -100, or the inputs a mask."""

    def draw(n: int, seed: int) -> Any:
        generator = torch.Generator().manual_seed(seed)
        ids = torch.randint(0, 40, (n, 12), generator=generator)
        lengths = torch.randint(4, 13, (n, 1), generator=generator)
        real = torch.arange(12) < lengths
        ids = ids * real
        labels = (ids + 2 * ids.roll(1, 1) * (torch.arange(12) > 0)) % 5
        flips = torch.rand(n, 12, generator=generator) < 0.05
        labels = (labels + flips) % 5
        if masked:
            return {"ids": ids, "attention_mask": real.long()}, labels
        return ids, labels.masked_fill(~real, -100)

    def parts(batch: Any) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        inputs, labels = batch
        inputs = inputs if masked else {"ids": inputs}
        return inputs, labels, inputs["attention_mask"].bool() if masked else labels >= 0

    def loss(model: nn.Module, *batch: Any) -> Tensor:
        inputs, labels, real = parts(batch)
        return F.cross_entropy(model(**inputs)[real], labels[real])

    def figure(model: nn.Module, _: nn.Module, batch: Any) -> float:
        inputs, labels, real = parts(batch)
        right = (model(**inputs).argmax(-1) == labels) & real
        return float((right.sum(1).double() / real.sum(1)).mean())

    torch.manual_seed(0)
    return World(fit(Tagger(), lambda s: draw(128, s), loss), draw, figure)


def pixels() -> World:
    def draw(n: int, seed: int) -> tuple[Tensor, Tensor]:
        x = normal(seed, n, 1, 6, 6)
        return x, (F.avg_pool2d(x, 3, 1, 1)[:, 0] > 0).long()

    def figure(model: nn.Module, _: nn.Module, batch: Any) -> float:
        return float((model(batch[0]).argmax(1) == batch[1]).double().mean())

    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 2, 1))
    model = fit(model, lambda s: draw(64, s), lambda m, x, y: F.cross_entropy(m(x), y))
    return World(model, draw, figure)


def losses() -> World:
    torch.manual_seed(0)
    model = Losses(2)
    fit(model, lambda s: (normal(s, 128, WIDTH),), lambda m, x: sum(m(x).values()))
    return World(model, lambda n, s: normal(s, n, WIDTH), lambda m, _, x: float(sum(m(x).values())))


def labelled() -> World:
    """Classes, called as transformers' models are."""
    plain = classes()
    model = Labelled(4)
    model.load_state_dict(plain.model.state_dict())

    def draw(n: int, seed: int) -> dict[str, Tensor]:
        x, labels = plain.draw(n, seed)
        return {"x": x, "labels": labels}

    def figure(model: nn.Module, _: nn.Module, batch: Any) -> float:
        return float((model(batch["x"]).logits.argmax(1) == batch["labels"]).double().mean())

    return World(model.eval().requires_grad_(False), draw, figure)


def detection(with_targets: bool) -> World:
    def scene(n: int, seed: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        there = torch.rand(n, 16, generator=generator) < 0.2
        grid = there.view(n, 1, 4, 4).float().repeat_interleave(4, 2).repeat_interleave(4, 3)
        return grid + 0.6 * normal(seed + 1, n, 1, 16, 16), there.float()

    def loss(model: Detector, x: Tensor, there: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(model.raw(x), there)

    def draw(n: int, seed: int) -> list[Any]:
        images, there = scene(n, seed)
        pairs = zip(images, map(_boxes, there), strict=True)
        return [([x], [boxes]) if with_targets else ([x],) for x, boxes in pairs]

    def figure(model: nn.Module, original: nn.Module, batch: Any) -> float:
        images = [example[0][0] for example in batch]
        found, first = _places(model(images)), _places(original(images))
        wanted = _places([example[1][0] for example in batch]) if with_targets else first
        pairs = zip(found, wanted, strict=True)
        each = [2 * len(f & w) / (len(f) + len(w)) if f or w else 1.0 for f, w in pairs]
        return sum(each) / len(each)

    torch.manual_seed(0)
    model = fit(Detector(), lambda s: scene(128, s), loss)
    return World(model, draw, figure, lambda batch: batch)


def _places(images: list[dict[str, Tensor]]) -> Iterator[set[tuple[float, ...]]]:
    """Boxes that are certain; those of this world agree wholly or not at all."""
    for found in images:
        kept = found["boxes"][found["scores"] >= 0.5] if "scores" in found else found["boxes"]
        yield {tuple(box) for box in kept.tolist()}


def ranked(by_row: bool, with_targets: bool = True) -> World:
    """Queries of 8 candidates, as rows of their own or beside each other; grades from 0 to 3."""

    def queries(n: int, seed: int) -> tuple[Tensor, Tensor]:
        x = normal(seed, n, 8, WIDTH)
        score = told(x.flatten(0, 1), 1, seed, 0.3).view(n, 8)
        return x, torch.bucketize(score, torch.tensor([-0.4, 0.0, 0.4]))

    def draw(n: int, seed: int) -> Any:
        x, grades = queries(n, seed)
        if by_row:
            return x, grades
        ids = (torch.arange(n) + 1000 * seed).repeat_interleave(8)
        rows = {"x": x.flatten(0, 1), "query": ids}
        return (rows, grades.flatten()) if with_targets else rows

    def figure(model: nn.Module, original: nn.Module, batch: Any) -> float:
        x = batch[0] if by_row else batch[0]["x"] if with_targets else batch["x"]
        wanted = batch[1] if with_targets else original(x)
        pairs = zip(model(x).view(-1, 8), wanted.view(-1, 8), strict=True)
        each = [spearmanr(f, w).statistic for f, w in pairs if w.unique().numel() > 1]
        return float(sum(each) / len(each))

    def loss(model: Body, x: Tensor, grades: Tensor) -> Tensor:
        return F.mse_loss(model.raw(x)[..., 0], grades.float())

    end = (lambda y: y[..., 0]) if by_row else (lambda y: y)
    torch.manual_seed(0)
    return World(fit(Body(1, end), lambda s: queries(32, s), loss), draw, figure)
